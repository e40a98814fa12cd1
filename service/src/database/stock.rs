//! The stock of a coupon: read, changed, deleted.

use std::sync::Arc;

use serde::Serialize;
use time::OffsetDateTime;
use tokio_postgres::{Row, types::Timestamp};
use utoipa::ToSchema;

use super::Database;
use crate::{error::Error, outcome::Outcome};

/// A coupon without its claims: its stock, its window, and what a claim would meet.
#[derive(Debug, Serialize, ToSchema)]
pub struct Stock {
    /// Unique name.
    #[schema(example = "PROMO_SUPER")]
    pub name: String,
    /// Total stock, in pieces.
    #[schema(example = 100)]
    pub amount: i32,
    /// Stock that can still be claimed.
    #[schema(example = 58)]
    pub remaining_amount: i32,
    /// Pieces that users hold, including expired holds whose pieces no claim has needed yet.
    #[schema(example = 2)]
    pub held_amount: i32,
    /// First moment at which it can be claimed; null if it can from its creation on.
    #[schema(format = DateTime, example = "2026-01-31T12:00:00.000000Z")]
    pub starts_at: Option<String>,
    /// First moment at which it can no longer be claimed; null if it has no end.
    #[schema(format = DateTime, example = "2026-01-31T13:00:00.000000Z")]
    pub ends_at: Option<String>,
    /// True while claims are refused because an operator has paused the coupon.
    #[schema(example = false)]
    pub paused: bool,
    /// Answer to a claim by a user without a claim or hold: `open`, or the code of the refusal.
    #[schema(
        example = "open",
        pattern = "^(open|not_started|ended|paused|sold_out|all_held)$"
    )]
    pub state: String,
}

/// Change of a coupon. What is none stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CouponChange {
    /// New total stock, in pieces, 0 or more.
    pub amount: Option<i32>,
    /// New start.
    pub starts_at: Option<Bound>,
    /// New end.
    pub ends_at: Option<Bound>,
    /// True to pause, false to resume.
    pub paused: Option<bool>,
}

/// New bound of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// This moment.
    At(OffsetDateTime),
    /// No bound.
    Removed,
}

impl Bound {
    /// The argument of the function: infinity removes a bound.
    fn argument(self, infinity: Timestamp<OffsetDateTime>) -> Timestamp<OffsetDateTime> {
        match self {
            Self::At(moment) => Timestamp::Value(moment),
            Self::Removed => infinity,
        }
    }
}

/// Columns of a stock, in the order in which [`stock`] reads them.
macro_rules! stock_columns {
    () => {
        concat!(
            "name, amount, remaining_amount, held_amount, ",
            utc!("starts_at"),
            ", ",
            utc!("ends_at"),
            ", paused, state::text"
        )
    };
}

impl Database {
    /// `honcho_get_stock`: returns the coupon's stock; none if there is no such coupon.
    pub async fn get_stock(&self, name: &str) -> Result<Option<Stock>, Error> {
        let sql = concat!("select ", stock_columns!(), " from honcho_get_stock($1)");
        let call = self
            .connections()
            .read(sql, vec![Box::new(name.to_owned())]);
        let rows = self.newer(call).await?;
        rows.first().map(|row| stock(row, 0)).transpose()
    }

    /// `honcho_get_stock` of several coupons: returns the stock of each that exists.
    pub async fn list_stocks(&self, names: &[Arc<str>]) -> Result<Vec<Stock>, Error> {
        let sql = concat!(
            "select stock.",
            stock_columns!(),
            " from unnest($1::text[]) as watched(coupon_name)
              cross join lateral honcho_get_stock(coupon_name) as stock"
        );
        let names: Vec<String> = names.iter().map(|name| (**name).to_owned()).collect();
        let call = self.connections().read(sql, vec![Box::new(names)]);
        let rows = self.newer(call).await?;
        rows.iter().map(|row| stock(row, 0)).collect()
    }

    /// `honcho_update_coupon`: changes the coupon, and returns the outcome and the stock after it; no stock if there
    /// is no such coupon.
    ///
    /// # Arguments
    /// `actor`: label of the caller in events; empty for none.
    pub async fn update_coupon(
        &self,
        name: &str,
        change: CouponChange,
        actor: &str,
    ) -> Result<(Outcome, Option<Stock>), Error> {
        let sql = concat!(
            with_actor!(),
            " select outcome::text, ",
            stock_columns!(),
            " from actor, lateral honcho_update_coupon($2::text || left(label, 0), $3, $4, $5, $6)"
        );
        let starts_at = change.starts_at;
        let starts_at = starts_at.map(|bound| bound.argument(Timestamp::NegInfinity));
        let ends_at = change.ends_at;
        let ends_at = ends_at.map(|bound| bound.argument(Timestamp::PosInfinity));
        let call = self.connections().change(
            sql,
            vec![
                Box::new(actor.to_owned()),
                Box::new(name.to_owned()),
                Box::new(change.amount),
                Box::new(starts_at),
                Box::new(ends_at),
                Box::new(change.paused),
            ],
        );
        changed(&self.newer(call).await?)
    }

    /// `honcho_restock`: changes the coupon's amount by `delta` pieces, and returns the outcome and the stock after
    /// it; no stock if there is no such coupon.
    ///
    /// # Arguments
    /// `actor`: label of the caller in events; empty for none.
    pub async fn restock(
        &self,
        name: &str,
        delta: i32,
        actor: &str,
    ) -> Result<(Outcome, Option<Stock>), Error> {
        let sql = concat!(
            with_actor!(),
            " select outcome::text, ",
            stock_columns!(),
            " from actor, lateral honcho_restock($2::text || left(label, 0), $3)"
        );
        let call = self.connections().change(
            sql,
            vec![
                Box::new(actor.to_owned()),
                Box::new(name.to_owned()),
                Box::new(delta),
            ],
        );
        changed(&self.newer(call).await?)
    }

    /// `honcho_delete_coupon`: deletes the coupon, and its claims and holds only if `with_claims`.
    ///
    /// # Arguments
    /// `actor`: label of the caller in events; empty for none.
    pub async fn delete_coupon(
        &self,
        name: &str,
        with_claims: bool,
        actor: &str,
    ) -> Result<Outcome, Error> {
        let sql = concat!(
            with_actor!(),
            " select honcho_delete_coupon($2::text || left(label, 0), $3)::text from actor"
        );
        let call = self.connections().change(
            sql,
            vec![
                Box::new(actor.to_owned()),
                Box::new(name.to_owned()),
                Box::new(with_claims),
            ],
        );
        let rows = self.newer(call).await?;
        super::outcome(super::only(&rows)?.try_get(0)?)
    }
}

/// Reads the row of a change: the outcome, and the stock unless there is no such coupon.
fn changed(rows: &[Row]) -> Result<(Outcome, Option<Stock>), Error> {
    let row = super::only(rows)?;
    let outcome = super::outcome(row.try_get(0)?)?;
    let stock = match outcome {
        Outcome::NotFound => None,
        _ => Some(stock(row, 1)?),
    };
    Ok((outcome, stock))
}

/// Reads a stock from the column `first` on.
fn stock(row: &Row, first: usize) -> Result<Stock, Error> {
    Ok(Stock {
        name: row.try_get(first)?,
        amount: row.try_get(first + 1)?,
        remaining_amount: row.try_get(first + 2)?,
        held_amount: row.try_get(first + 3)?,
        starts_at: row.try_get(first + 4)?,
        ends_at: row.try_get(first + 5)?,
        paused: row.try_get(first + 6)?,
        state: row.try_get(first + 7)?,
    })
}
