//! A coupon with its claimants, read page by page while the caller takes them.
//!
//! Each page is a short read of its own: a caller that takes its time holds neither a connection nor a
//! snapshot, which would keep every coupon's row from being pruned. The list is of one moment all the
//! same. Claims of a coupon get their ids in its turn, one after the other, so those that come while the
//! list is read are behind those that were there; and how many were there, the coupon's figures say,
//! which are from the same snapshot as the first page.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use super::connections::Connections;
use crate::error::Error;

/// Claims read at a time: what a list holds in memory, however long it is.
const PAGE: i32 = 1000;

/// A coupon as it stands.
#[derive(Debug)]
pub struct Coupon {
    /// Its name.
    pub name: String,
    /// How many there are in all.
    pub amount: i32,
    /// How many are left.
    pub remaining_amount: i32,
}

/// The claimants of a coupon as of one moment, from the second page on.
///
/// A claim that is deleted meanwhile, which nothing here does, may be missing.
#[derive(Debug)]
pub struct Reading {
    connections: Arc<Connections>,
    coupon_name: String,
    /// The id of the last claim that was read.
    after: i64,
    /// Claimants that are still to be read.
    left: i32,
    _place: OwnedSemaphorePermit,
}

impl Reading {
    /// The next claimants, in the order of their claims; none after the last.
    ///
    /// # Errors
    /// Those of the database. Nothing can be read after one.
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
            self.after = row.try_get(0)?;
            users.push(row.try_get(1)?);
        }
        // Fewer than there were: the list ends here, whatever the coupon's figures say.
        self.left = if users.len() < max as usize {
            0
        } else {
            self.left - max
        };
        Ok(Some(users))
    }
}

/// Reads the coupon called `name`, its first claimants, and what is needed to read the others, if there
/// are any; none when there is no such coupon.
pub(super) async fn begin(
    connections: &Arc<Connections>,
    name: &str,
) -> Result<Option<(Coupon, Vec<String>, Option<Reading>)>, Error> {
    // One statement, one snapshot.
    let sql = "select coupon.name, amount, remaining_amount, claim.id, user_id
                 from honcho_get_coupon($1) as coupon
                 left join honcho_list_claims($1, 0, $2) as claim on true
                order by claim.id";
    let rows = connections
        .read(sql, vec![Box::new(name.to_owned()), Box::new(PAGE)])
        .await?;
    let Some(row) = rows.first() else {
        return Ok(None);
    };
    let coupon = Coupon {
        name: row.try_get(0)?,
        amount: row.try_get(1)?,
        remaining_amount: row.try_get(2)?,
    };
    let mut after = 0;
    let mut users = Vec::with_capacity(rows.len());
    for row in &rows {
        // Null without a claim.
        if let Some(id) = row.try_get(3)? {
            after = id;
            users.push(row.try_get(4)?);
        }
    }
    let left = coupon.amount - coupon.remaining_amount - PAGE;
    let rest = if users.len() == PAGE as usize && left > 0 {
        Some(Reading {
            connections: Arc::clone(connections),
            coupon_name: coupon.name.clone(),
            after,
            left,
            _place: connections.long_list()?,
        })
    } else {
        None
    };
    Ok(Some((coupon, users, rest)))
}
