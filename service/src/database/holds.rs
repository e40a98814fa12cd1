//! Holds, read. They are made and ended by the operations of `apply`.

use serde::Serialize;
use tokio_postgres::Row;
use utoipa::ToSchema;

use super::{Database, connections::Argument};
use crate::error::Error;

/// A live hold.
#[derive(Debug, Serialize, ToSchema)]
pub struct Hold {
    /// User who holds a piece.
    #[schema(example = "user_12345")]
    pub user_id: String,
    /// Name of the coupon.
    #[schema(example = "PROMO_SUPER")]
    pub coupon_name: String,
    /// First moment at which it is no longer held.
    #[schema(format = DateTime, example = "2026-01-31T12:05:00.123456Z")]
    pub expires_at: String,
    /// Time of the reservation, taken in its turn.
    #[schema(format = DateTime, example = "2026-01-31T12:00:00.123456Z")]
    pub created_at: String,
}

/// Columns of a hold, in the order in which [`holds_of`] reads them.
macro_rules! hold_columns {
    () => {
        concat!(
            "hold.user_id, hold.coupon_name, ",
            utc!("hold.expires_at"),
            ", ",
            utc!("hold.created_at")
        )
    };
}

impl Database {
    /// `honcho_get_hold`: returns the user's live hold on the coupon as a list of one hold or an empty one; none if
    /// there is no such coupon.
    pub async fn get_hold(
        &self,
        user_id: &str,
        coupon_name: &str,
    ) -> Result<Option<Vec<Hold>>, Error> {
        let sql = concat!(
            "select ",
            hold_columns!(),
            " from honcho_get_coupon($2) left join honcho_get_hold($1, $2) as hold on true"
        );
        let user_id = Box::new(user_id.to_owned());
        let arguments: Vec<Argument> = vec![user_id, Box::new(coupon_name.to_owned())];
        let rows = self.newer(self.connections().read(sql, arguments)).await?;
        holds_of(&rows)
    }

    /// `honcho_list_holds`: returns at most `max` of the coupon's live holds of users after `after`, in the order of
    /// their ids; none if there is no such coupon.
    pub async fn list_holds(
        &self,
        coupon_name: &str,
        after: &str,
        max: i32,
    ) -> Result<Option<Vec<Hold>>, Error> {
        let sql = concat!(
            "select ",
            hold_columns!(),
            " from honcho_get_coupon($1)
              left join honcho_list_holds($1, $2, $3) with ordinality as hold on true
             order by hold.ordinality"
        );
        let coupon_name = Box::new(coupon_name.to_owned());
        let arguments: Vec<Argument> = vec![coupon_name, Box::new(after.to_owned()), Box::new(max)];
        let rows = self.newer(self.connections().read(sql, arguments)).await?;
        holds_of(&rows)
    }
}

/// Reads the holds of a left join from their coupon: it has no row without a coupon, and one row of nulls without a
/// hold.
fn holds_of(rows: &[Row]) -> Result<Option<Vec<Hold>>, Error> {
    if rows.is_empty() {
        return Ok(None);
    }
    let mut holds = Vec::with_capacity(rows.len());
    for row in rows {
        if let Some(user_id) = row.try_get(0)? {
            holds.push(Hold {
                user_id,
                coupon_name: row.try_get(1)?,
                expires_at: row.try_get(2)?,
                created_at: row.try_get(3)?,
            });
        }
    }
    Ok(Some(holds))
}
