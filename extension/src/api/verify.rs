//! Checking the books.

use pgrx::prelude::*;
use pgrx::spi;

use crate::api::args;
use crate::claiming::store::coupons::Coupons;
use crate::pg::plan::{Plan, column};
use crate::pg::rows::TableIterator;
use crate::pg::schema::Schema;

/// The query of the books, with the column of the number of holds and the table of holds.
macro_rules! books {
    ($held_amount:literal, $next_expiry:literal, $holds:literal) => {
        concat!(
            "with claimed as (
                 select coupon_name, pg_catalog.count(*) as claims,
                        pg_catalog.count(distinct user_id) as users, pg_catalog.max(id) as last
                 from {schema}.claims
                 where $1 is null or coupon_name operator(pg_catalog.=) $1
                 group by coupon_name
             ), held as (
                 select coupon_name, pg_catalog.count(*) as holds, pg_catalog.min(expires_at) as first
                 from ",
            $holds,
            " h
                 where $1 is null or coupon_name operator(pg_catalog.=) $1
                 group by coupon_name
             ), named as (
                 select coalesce(claimed.coupon_name, held.coupon_name) as name,
                        coalesce(claims, 0) as claims, coalesce(users, 0) as users,
                        coalesce(last, 0) as last, coalesce(holds, 0) as holds, first
                 from claimed
                 full join held on held.coupon_name operator(pg_catalog.=) claimed.coupon_name
             ), book as (
                 select coalesce(c.name, n.name) as name, c.id is not null as known,
                        c.amount, c.remaining_amount, ",
            $held_amount,
            " as held_amount, ",
            $next_expiry,
            " as next_expiry, first,
                        coalesce(claims, 0) as claims, coalesce(users, 0) as users,
                        coalesce(holds, 0) as holds, c.id, coalesce(last, 0) as last
                 from {schema}.coupons c
                 full join named n on n.name operator(pg_catalog.=) c.name
                 where $1 is null
                    or coalesce(c.name, n.name) operator(pg_catalog.=) $1
             ), given as (
                 select case when c.is_called then c.last_value
                             else c.last_value operator(pg_catalog.-) 1 end as coupon_ids,
                        case when l.is_called then l.last_value
                             else l.last_value operator(pg_catalog.-) 1 end as claim_ids
                 from {schema}.coupons_id_seq c, {schema}.claims_id_seq l
             )
             select name::pg_catalog.text, invariant, holds_true, detail
             from book, given, lateral (values
                 (1, known, 'stock',
                  amount operator(pg_catalog.=)
                      (remaining_amount operator(pg_catalog.+) held_amount operator(pg_catalog.+) claims),
                  case when held_amount operator(pg_catalog.=) 0
                       then pg_catalog.format('amount %s, remaining_amount %s, claims %s',
                                              amount, remaining_amount, claims)
                       else pg_catalog.format('amount %s, remaining_amount %s, held_amount %s, claims %s',
                                              amount, remaining_amount, held_amount, claims) end),
                 (2, known, 'range',
                  remaining_amount operator(pg_catalog.>=) 0
                      and remaining_amount operator(pg_catalog.<=) amount,
                  pg_catalog.format('amount %s, remaining_amount %s', amount, remaining_amount)),
                 (3, true, 'one_per_user', claims operator(pg_catalog.=) users,
                  pg_catalog.format('claims %s, users %s', claims, users)),
                 (4, holds operator(pg_catalog.>) 0 or held_amount operator(pg_catalog.<>) 0, 'held',
                  held_amount operator(pg_catalog.=) holds
                      and (next_expiry operator(pg_catalog.=) first) is true
                      and not exists (
                      select from ",
            $holds,
            " h
                      join {schema}.claims o
                        on o.coupon_name operator(pg_catalog.=) h.coupon_name
                       and o.user_id operator(pg_catalog.=) h.user_id
                      where h.coupon_name operator(pg_catalog.=) book.name
                  ),
                  pg_catalog.format('held_amount %s, holds %s', held_amount, holds)
                      operator(pg_catalog.||) case
                          when (next_expiry operator(pg_catalog.=) first) is true then ''
                          else pg_catalog.format(', next_expiry %s, first of holds %s', next_expiry, first)
                      end),
                 (5, id operator(pg_catalog.>) coupon_ids or last operator(pg_catalog.>) claim_ids,
                  'ids', false,
                  pg_catalog.format('id %s of %s given, last claim id %s of %s given',
                                    id, coupon_ids, last, claim_ids)),
                 (6, not known, 'coupon_exists', false,
                  case when holds operator(pg_catalog.=) 0
                       then pg_catalog.format('claims %s', claims)
                       else pg_catalog.format('claims %s, holds %s', claims, holds) end)
             ) as checked (ordinal, applies, invariant, holds_true, detail)
             where applies
             order by name, ordinal"
        )
    };
}

/// Checks the invariants of each coupon against the rows.
///
/// # Arguments
/// `name`: the coupon to check, 1 to 255 characters; null for all of them.
///
/// # Returns
/// One row per coupon and invariant, coupons by name, with the figures.
/// `stock`: amount = remaining_amount + held_amount + claims. `range`: 0 <= remaining_amount <= amount.
/// `one_per_user`: no user has the coupon twice. `held`: held_amount is the number of holds, next_expiry the first expiry of theirs, and no user has
/// both a hold and a claim; reported if there are any. Two more are reported only if they do not hold:
/// `ids`: the sequences are past the ids of the coupon and its claims, so they repeat none.
/// `coupon_exists`: the coupon of the claims and holds exists.
///
/// # Errors
/// `22023` for a bad argument.
#[pg_extern(stable, parallel_safe, security_definer)]
#[search_path(pg_catalog, pg_temp)]
#[allow(clippy::type_complexity)]
fn honcho_verify(
    name: default!(Option<&str>, "null"),
    fcinfo: pg_sys::FunctionCallInfo,
) -> spi::Result<
    TableIterator<
        'static,
        (
            name!(coupon_name, String),
            name!(invariant, String),
            name!(holds, bool),
            name!(detail, String),
        ),
    >,
> {
    // The constraints should make all of this impossible to break, so the query does not rely on them:
    // it counts claims and holds in the heap, by name.
    thread_local! {
        static PLAN: Plan = const {
            Plan::new(
                books!("c.held_amount", "c.next_expiry", "{schema}.holds"),
                &[PgBuiltInOids::TEXTOID],
            )
        };
        /// Before the extension is updated to a version that has holds.
        static WITHOUT_HOLDS: Plan = const {
            Plan::new(
                books!(
                    "0",
                    "null::pg_catalog.timestamptz",
                    "(select null::pg_catalog.text as coupon_name, null::pg_catalog.text as user_id,
                             null::pg_catalog.timestamptz as expires_at
                      where false)"
                ),
                &[PgBuiltInOids::TEXTOID],
            )
        };
    }
    let name = name.map(|name| args::text("name", Some(name)));
    let schema = Schema::of_call(fcinfo);
    let plan = if Coupons::open(schema).have_holds() {
        &PLAN
    } else {
        &WITHOUT_HOLDS
    };
    let rows = Plan::rows(plan, schema, &[name.into()], |row| {
        Ok((
            column(row, 1)?,
            column(row, 2)?,
            column(row, 3)?,
            column(row, 4)?,
        ))
    })?;
    Ok(TableIterator::new(rows))
}
