//! Claimants of a coupon, read page by page as the caller takes them.
//!
//! Each page is a short read: a slow caller holds neither a connection nor a snapshot, which would keep every
//! coupon's row from being pruned. Still the list is of one moment. Claims of a coupon get their ids in its turn,
//! one after the other, so later claims have greater ids than the last one in the snapshot of the first page; and
//! the coupon's figures, which are from that snapshot too, give the number of claims at that moment.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use super::{connections::Connections, extension::Extension};
use crate::error::Error;

/// Claims of a page: the memory that a list of any length takes.
const PAGE: i32 = 1000;

/// A coupon's name and stock.
#[derive(Debug)]
pub struct CouponStock {
    /// Name.
    pub name: String,
    /// Total stock, in pieces.
    pub amount: i32,
    /// Stock that can still be claimed.
    pub remaining_amount: i32,
}

/// The claimants of a coupon at one moment, from the second page on.
///
/// A claim that is released while the list is read may be missing.
#[derive(Debug)]
pub struct Claimants {
    connections: Arc<Connections>,
    coupon_name: String,
    /// Id of the last claim read.
    after: i64,
    /// Id of the last claim of that moment.
    last: i64,
    /// The most claimants still to be read.
    left: i32,
    _permit: OwnedSemaphorePermit,
}

impl Claimants {
    /// Reads the next claimants, in claim order; none after the last.
    ///
    /// # Errors
    /// Errors of the database. Nothing can be read after one.
    pub async fn next_page(&mut self) -> Result<Option<Vec<String>>, Error> {
        if self.left == 0 {
            return Ok(None);
        }
        let sql = "select id, user_id from honcho_list_claims($1, $2, $3)";
        let max = self.left.min(PAGE);
        let coupon_name = Box::new(self.coupon_name.clone());
        let rows = self
            .connections
            .read_page(sql, vec![coupon_name, Box::new(self.after), Box::new(max)])
            .await?;
        let mut users = Vec::with_capacity(rows.len());
        for row in &rows {
            let id = row.try_get(0)?;
            if id > self.last {
                break;
            }
            self.after = id;
            users.push(row.try_get(1)?);
        }
        // A short page ends the list, even if the coupon's figures promise more: claims may be released meanwhile.
        self.left = if users.len() < max as usize {
            0
        } else {
            self.left - max
        };
        Ok(Some(users))
    }
}

/// Reads a coupon, the id of its last claim, and its first claimants: one statement, one snapshot.
const FIRST_PAGE: &str = "
    select stock.name, amount, remaining_amount, held_amount, last_claim_id, claim.id, user_id
      from honcho_get_stock($1) as stock
      left join honcho_list_claims($1, 0, $2) as claim on true
     order by claim.id";

/// The same on an outdated extension, where nothing is held, and no function deletes a claim: the number of claims is
/// enough.
const FIRST_PAGE_OUTDATED: &str = "
    select coupon.name, amount, remaining_amount, 0, 9223372036854775807, claim.id, user_id
      from honcho_get_coupon($1) as coupon
      left join honcho_list_claims($1, 0, $2) as claim on true
     order by claim.id";

/// Reads the coupon `name` and its first claimants, and prepares reading the others, if there are any; returns
/// none if there is no such coupon.
pub(super) async fn begin(
    connections: &Arc<Connections>,
    extension: &Extension,
    name: &str,
) -> Result<Option<(CouponStock, Vec<String>, Option<Claimants>)>, Error> {
    let read = |sql| connections.read(sql, vec![Box::new(name.to_owned()), Box::new(PAGE)]);
    let rows = match extension.newer(read(FIRST_PAGE)).await {
        Err(Error::ExtensionOutdated) => read(FIRST_PAGE_OUTDATED).await?,
        rows => rows?,
    };
    let Some(row) = rows.first() else {
        return Ok(None);
    };
    let coupon = CouponStock {
        name: row.try_get(0)?,
        amount: row.try_get(1)?,
        remaining_amount: row.try_get(2)?,
    };
    let held_amount: i32 = row.try_get(3)?;
    let last = row.try_get(4)?;
    let mut after = 0;
    let mut users = Vec::with_capacity(rows.len());
    for row in &rows {
        // Null without a claim.
        if let Some(id) = row.try_get(5)? {
            after = id;
            users.push(row.try_get(6)?);
        }
    }
    let left = coupon.amount - coupon.remaining_amount - held_amount - PAGE;
    let rest = if users.len() == PAGE as usize && left > 0 {
        Some(Claimants {
            connections: Arc::clone(connections),
            coupon_name: coupon.name.clone(),
            after,
            last,
            left,
            _permit: connections.permit_long_list()?,
        })
    } else {
        None
    };
    Ok(Some((coupon, users, rest)))
}
