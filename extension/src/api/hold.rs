//! Holds: `honcho_reserve`, `honcho_confirm`, `honcho_cancel`, `honcho_expire`, and reading them.

use pgrx::datum::{Interval, TimestampWithTimeZone};
use pgrx::prelude::*;
use pgrx::spi;

use crate::api::args::{self, MAX_PAGE};
use crate::api::outcome::SqlOutcome;
use crate::api::reading::{moment, reading};
use crate::claiming::operation::{Action, Operation};
use crate::claiming::store::{Tables, View};
use crate::claiming::{decision, life};
use crate::pg::column::Text;
use crate::pg::plan::{Plan, column};
use crate::pg::rows::TableIterator;
use crate::pg::schema::Schema;
use crate::pg::session::{self, Command};

/// Holds a piece of a coupon for a user for a limited time, in the caller's own transaction.
///
/// # Arguments
/// `user_id` and `coupon_name`: 1 to 255 characters. `ttl`: 1 second to 24 hours, from the moment at which the
/// piece is taken. `request_key`: 1 to 255 characters, which the claim out of the hold gets; null for none.
///
/// # Returns
/// One row: the outcome and a time. `held` and the time at which the hold expires; a user who has a hold gets
/// the same one, with its time unchanged. `already_claimed`; the refusals of a claim in its order; `all_held`
/// and the time at which the first hold expires.
///
/// # Errors and locks
/// Those of `honcho_claim`.
#[pg_extern(volatile, parallel_unsafe, security_definer)]
#[search_path(pg_catalog, pg_temp)]
#[allow(clippy::type_complexity)]
fn honcho_reserve(
    user_id: Option<&str>,
    coupon_name: Option<&str>,
    ttl: Option<Interval>,
    request_key: default!(Option<&str>, "null"),
    fcinfo: pg_sys::FunctionCallInfo,
) -> TableIterator<
    'static,
    (
        name!(outcome, SqlOutcome),
        name!(expires_at, Option<TimestampWithTimeZone>),
    ),
> {
    let command = Command {
        name: c"honcho_reserve()",
        doing: c"while reserving",
    };
    let user_id = args::text("user_id", user_id);
    let coupon_name = args::text("coupon_name", coupon_name);
    let ttl = args::ttl("ttl", ttl);
    let request_key = request_key.map(|key| args::text("request_key", Some(key)));
    let schema = Schema::of_call(fcinfo);
    let operation = Operation {
        request_key,
        ..Operation::new(Action::Reserve(ttl), user_id)
    };
    let answer = decision::operate_one(schema, command, coupon_name, operation);
    TableIterator::new([(
        SqlOutcome::new(answer.outcome, schema),
        answer.expires_at.and_then(moment),
    )])
}

/// Turns a user's hold into a claim, in the caller's own transaction, whatever window and pause.
///
/// # Arguments
/// `user_id` and `coupon_name`: 1 to 255 characters.
///
/// # Returns
/// `claimed`, also if the user has the claim already; `not_held` if there is no hold, or if it has expired;
/// `not_found`.
///
/// # Errors and locks
/// Those of `honcho_claim`.
#[pg_extern(volatile, parallel_unsafe, security_definer)]
#[search_path(pg_catalog, pg_temp)]
fn honcho_confirm(
    user_id: Option<&str>,
    coupon_name: Option<&str>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> SqlOutcome {
    let command = Command {
        name: c"honcho_confirm()",
        doing: c"while confirming",
    };
    let user_id = args::text("user_id", user_id);
    let coupon_name = args::text("coupon_name", coupon_name);
    let schema = Schema::of_call(fcinfo);
    let operation = Operation::new(Action::Confirm, user_id);
    let answer = decision::operate_one(schema, command, coupon_name, operation);
    SqlOutcome::new(answer.outcome, schema)
}

/// Gives a user's hold back, in the caller's own transaction: its piece is stock again.
///
/// # Arguments
/// `user_id` and `coupon_name`: 1 to 255 characters.
///
/// # Returns
/// `cancelled`; `not_held` if there is no hold, if it has expired, or if it has become a claim; `not_found`.
///
/// # Errors and locks
/// Those of `honcho_claim`.
#[pg_extern(volatile, parallel_unsafe, security_definer)]
#[search_path(pg_catalog, pg_temp)]
fn honcho_cancel(
    user_id: Option<&str>,
    coupon_name: Option<&str>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> SqlOutcome {
    let command = Command {
        name: c"honcho_cancel()",
        doing: c"while cancelling",
    };
    let user_id = args::text("user_id", user_id);
    let coupon_name = args::text("coupon_name", coupon_name);
    let schema = Schema::of_call(fcinfo);
    let operation = Operation::new(Action::Cancel, user_id);
    let answer = decision::operate_one(schema, command, coupon_name, operation);
    SqlOutcome::new(answer.outcome, schema)
}

/// Takes expired holds back, which are stock from their expiry on with or without this: it tidies.
///
/// # Arguments
/// `max`: the most holds to take back, at least 1.
///
/// # Returns
/// The number of holds that were taken back.
///
/// # Errors
/// `22004`, `22023` for a bad argument; `25006` in a read-only transaction; `40001` under repeatable read and
/// serializable when a coupon changed after the snapshot.
///
/// # Locks
/// The turn and the row of each coupon that it changes, in the order of their ids, until the transaction ends.
/// It waits for no turn: coupons whose turn is taken are left out.
#[pg_extern(volatile, parallel_unsafe, security_definer)]
#[search_path(pg_catalog, pg_temp)]
fn honcho_expire(
    max: default!(Option<i32>, 1000),
    fcinfo: pg_sys::FunctionCallInfo,
) -> spi::Result<i32> {
    let command = Command {
        name: c"honcho_expire()",
        doing: c"while expiring holds of",
    };
    let max = args::int("max", max, 1..=i32::MAX);
    let expired = life::expire(Schema::of_call(fcinfo), command, max as usize)?;
    Ok(expired as i32)
}

reading! {
    columns {
        user_id: [String],
        coupon_name: [String],
        expires_at: [TimestampWithTimeZone],
        created_at: [TimestampWithTimeZone],
    }
    look_up
        /// Reads one hold.
        ///
        /// # Arguments
        /// `user_id` and `coupon_name`: 1 to 255 characters.
        ///
        /// # Returns
        /// Its row, or none, also if it has expired.
        ///
        /// # Errors
        /// `22004`, `22023` for a bad argument.
        fn honcho_get_hold(user_id: Option<&str>, coupon_name: Option<&str>,) in schema
        {
            let user_id = args::text("user_id", user_id);
            let coupon_name = args::text("coupon_name", coupon_name);
            let tables = Tables::open(schema);
            let mut view = View::of_query(&tables);
            let hold = view.hold(Text::new(user_id), Text::new(coupon_name));
            hold.filter(|hold| hold.expires_at() > session::now()).and_then(|hold| {
                let (expires_at, created_at) = (moment(hold.expires_at())?, moment(hold.created_at())?);
                Some((user_id.to_owned(), coupon_name.to_owned(), expires_at, created_at))
            })
        }

    select
        "select user_id::pg_catalog.text, coupon_name::pg_catalog.text, expires_at, created_at
         from {schema}.holds
         where expires_at operator(pg_catalog.>) pg_catalog.clock_timestamp()"

    /// Reads a page of a coupon's holds that have not expired, in the order of their users.
    ///
    /// # Arguments
    /// `coupon_name`: 1 to 255 characters. `after`: the user of the last hold of the page before, empty for the
    /// first page. `max`: the most rows to return, 1 to 10,000.
    ///
    /// # Returns
    /// The holds of the users after that one, by the bytes of their ids; fewer than `max` of them on the last
    /// page.
    ///
    /// # Errors
    /// `22004`, `22023` for a bad argument.
    fn honcho_list_holds(
        coupon_name: Option<&str>,
        after: default!(Option<&str>, "''"),
        max: default!(Option<i32>, 1000),
    )
    "and coupon_name operator(pg_catalog.=) $1 and user_id operator(pg_catalog.>) $2::pg_catalog.text collate pg_catalog.\"C\"
     order by user_id limit $3",
    [TEXTOID, TEXTOID, INT4OID]
    {
        let coupon_name = args::text("coupon_name", coupon_name);
        let after = args::not_null("after", after);
        let max = args::int("max", max, 1..=MAX_PAGE);
        [coupon_name.into(), after.into(), max.into()]
    }
}
