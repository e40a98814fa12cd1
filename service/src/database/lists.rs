//! Lists over all shards. Each shard reads a page, and the pages are merged in the order of ids, which no two shards have
//! in common.

use futures_util::future::try_join_all;

use super::{Coupon, Database, UserClaim};
use crate::{error::Error, shards::Shards};

impl Shards<Database> {
    /// `honcho_list_coupons` of all shards: returns at most `max` coupons with ids above `after`, in the order of ids.
    ///
    /// # Errors
    /// Those of any shard: a list without its coupons would be wrong.
    pub async fn list_coupons(&self, after: i64, max: i32) -> Result<Vec<Coupon>, Error> {
        let pages = self.iter().map(|shard| shard.list_coupons(after, max));
        let pages = try_join_all(pages).await?;
        Ok(merged(pages, max, |coupon| coupon.id))
    }

    /// `honcho_list_user_claims` of all shards: returns at most `max` of the user's claims on coupons with ids above
    /// `after`, in the order of these ids.
    ///
    /// # Errors
    /// Those of any shard.
    pub async fn list_user_claims(
        &self,
        user_id: &str,
        after: i64,
        max: i32,
    ) -> Result<Vec<UserClaim>, Error> {
        let pages = self
            .iter()
            .map(|shard| shard.list_user_claims(user_id, after, max));
        let pages = try_join_all(pages).await?;
        Ok(merged(pages, max, |claim| claim.coupon_id))
    }
}

/// The first `max` entries of all pages, in the order of their ids.
fn merged<T>(pages: Vec<Vec<T>>, max: i32, id: impl Fn(&T) -> i64) -> Vec<T> {
    let mut entries: Vec<T> = pages.into_iter().flatten().collect();
    entries.sort_unstable_by_key(id);
    entries.truncate(max as usize);
    entries
}
