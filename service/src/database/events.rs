//! Events of coupons.

use serde_json::value::RawValue;
use tokio_postgres::Row;

use super::{Database, connections::Argument, only};
use crate::error::Error;

/// An event in the life of a coupon.
#[derive(Debug)]
pub struct CouponEvent {
    /// Ascending id: the order of a coupon's events.
    pub id: i64,
    /// Name of the coupon.
    pub coupon_name: String,
    /// Kind, such as `sold_out`.
    pub kind: String,
    /// Time of the event, taken in the coupon's turn.
    pub at: String,
    /// Session or token that caused it.
    pub actor: String,
    /// Details, by kind.
    pub details: Box<RawValue>,
}

impl Database {
    /// `honcho_list_events`: returns at most `max` events of all coupons with ids above `after`, in their order. An
    /// event that is missing comes after those that are returned.
    pub async fn list_events(&self, after: i64, max: i32) -> Result<Vec<CouponEvent>, Error> {
        let sql = concat!(
            "select id, coupon_name, kind, ",
            utc!("at"),
            ", actor, details::text from honcho_list_events($1, $2)"
        );
        let arguments: Vec<Argument> = vec![Box::new(after), Box::new(max)];
        let rows = self.newer(self.connections().read(sql, arguments)).await?;
        rows.iter().map(event_of).collect()
    }

    /// The same for those that one client has missed: they are read as pages of long lists are. With `coupon_name`
    /// those of this coupon.
    pub async fn list_missed_events(
        &self,
        after: i64,
        max: i32,
        coupon_name: Option<&str>,
    ) -> Result<Vec<CouponEvent>, Error> {
        let sql = concat!(
            "select id, coupon_name, kind, ",
            utc!("at"),
            ", actor, details::text from honcho_list_events($1, $2, $3)"
        );
        let coupon_name = coupon_name.map(str::to_owned);
        let arguments: Vec<Argument> = vec![Box::new(after), Box::new(max), Box::new(coupon_name)];
        let rows = self
            .newer(self.connections().read_page(sql, arguments))
            .await?;
        rows.iter().map(event_of).collect()
    }

    /// Id of the last event up to `limit` that [`list_events`](Self::list_events) can return; 0 if there is none.
    pub async fn last_event_id(&self, limit: i64) -> Result<i64, Error> {
        // No function returns it. This halves the range of ids in which it is until one is left: there is an event with
        // the id `low` (or it is 0), and none above `high` up to the limit.
        let sql = "
            with recursive search(low, high) as (
                select 0::bigint, $1::bigint
                union all
                select coalesce(event.id, low), case when event.id is null then middle else high end
                  from search
                 cross join lateral (select low + (high - low) / 2) as half(middle)
                  left join lateral honcho_list_events(middle, 1) as event on event.id <= $1
                 where low < high
            )
            select low from search where low >= high";
        let call = self.connections().read(sql, vec![Box::new(limit)]);
        let rows = self.newer(call).await?;
        Ok(only(&rows)?.try_get(0)?)
    }
}

fn event_of(row: &Row) -> Result<CouponEvent, Error> {
    let details = RawValue::from_string(row.try_get(5)?);
    Ok(CouponEvent {
        id: row.try_get(0)?,
        coupon_name: row.try_get(1)?,
        kind: row.try_get(2)?,
        at: row.try_get(3)?,
        actor: row.try_get(4)?,
        details: details.map_err(|error| Error::Internal(error.into()))?,
    })
}
