//! Reading claims.

use pgrx::datum::TimestampWithTimeZone;
use pgrx::prelude::*;
use pgrx::spi;

use crate::api::args::{self, MAX_PAGE};
use crate::api::reading::{moment, reading};
use crate::claiming::store::{Tables, View};
use crate::pg::column::Text;
use crate::pg::plan::{Plan, column};
use crate::pg::rows::TableIterator;
use crate::pg::schema::Schema;

reading! {
    columns {
        id: [i64],
        user_id: [String],
        coupon_name: [String],
        claimed_at: [TimestampWithTimeZone],
    }
    look_up
        /// Reads one claim.
        ///
        /// # Arguments
        /// `user_id` and `coupon_name`: 1 to 255 characters.
        ///
        /// # Returns
        /// Its row, or none.
        ///
        /// # Errors
        /// `22004`, `22023` for a bad argument.
        fn honcho_get_claim(user_id: Option<&str>, coupon_name: Option<&str>,) in schema
        {
            let user_id = args::text("user_id", user_id);
            let coupon_name = args::text("coupon_name", coupon_name);
            let tables = Tables::open(schema);
            let mut view = View::of_query(&tables);
            let claim = view.claim(Text::new(user_id), Text::new(coupon_name));
            claim.and_then(|claim| {
                let claimed_at = moment(claim.claimed_at())?;
                Some((claim.id()?, user_id.to_owned(), coupon_name.to_owned(), claimed_at))
            })
        }

    select
        "select id, user_id::pg_catalog.text, coupon_name::pg_catalog.text, claimed_at from {schema}.claims"

    /// Reads a page of a coupon's claims, in claim order.
    ///
    /// # Arguments
    /// `coupon_name`: 1 to 255 characters. `after`: the id of the last claim of the page before, 0 for
    /// the first page. `max`: the most rows to return, 1 to 10,000.
    ///
    /// # Returns
    /// The claims with greater ids, ascending; fewer than `max` of them on the last page.
    ///
    /// # Errors
    /// `22004`, `22023` for a bad argument.
    fn honcho_list_claims(
        coupon_name: Option<&str>,
        after: default!(Option<i64>, 0),
        max: default!(Option<i32>, 1000),
    )
    "where coupon_name operator(pg_catalog.=) $1 and id operator(pg_catalog.>) $2 order by id limit $3",
    [TEXTOID, INT8OID, INT4OID]
    {
        let coupon_name = args::text("coupon_name", coupon_name);
        let after = args::not_null("after", after);
        let max = args::int("max", max, 1..=MAX_PAGE);
        [coupon_name.into(), after.into(), max.into()]
    }
}

reading! {
    columns {
        coupon_id: [i64],
        coupon_name: [String],
        claimed_at: [TimestampWithTimeZone],
    }
    select
        "select c.id, c.name::pg_catalog.text, l.claimed_at
         from {schema}.coupons c
         join {schema}.claims l on l.coupon_name operator(pg_catalog.=) c.name"

    /// Reads a page of a user's claims across coupons, in the order in which the coupons were created.
    ///
    /// It looks each coupon up in the claims' key, unless there is an index on `claims (user_id)`, which the
    /// planner uses then.
    ///
    /// # Arguments
    /// `user_id`: 1 to 255 characters. `after`: the coupon's id in the last row of the page before, 0 for the
    /// first page. `max`: the most rows to return, 1 to 10,000.
    ///
    /// # Returns
    /// The user's claims on coupons with greater ids, ascending; fewer than `max` of them on the last page.
    ///
    /// # Errors
    /// `22004`, `22023` for a bad argument.
    fn honcho_list_user_claims(
        user_id: Option<&str>,
        after: default!(Option<i64>, 0),
        max: default!(Option<i32>, 1000),
    )
    "where l.user_id operator(pg_catalog.=) $1 and c.id operator(pg_catalog.>) $2 order by c.id limit $3",
    [TEXTOID, INT8OID, INT4OID]
    {
        let user_id = args::text("user_id", user_id);
        let after = args::not_null("after", after);
        let max = args::int("max", max, 1..=MAX_PAGE);
        [user_id.into(), after.into(), max.into()]
    }
}
