//! Checking the books.

use pgrx::prelude::*;
use pgrx::spi;

use crate::api::args;
use crate::pg::plan::{Plan, column};
use crate::pg::rows::TableIterator;
use crate::pg::schema::Schema;

/// Checks the invariants of each coupon against the rows.
///
/// # Arguments
/// `name`: the coupon to check, 1 to 255 characters; null for all of them.
///
/// # Returns
/// One row per coupon and invariant, coupons by name, with the figures.
/// `stock`: amount = remaining_amount + claims. `range`: 0 <= remaining_amount <= amount.
/// `one_per_user`: no user holds the coupon twice. Two more are reported only if they do not hold:
/// `ids`: the sequences are past the ids of the coupon and its claims, so they repeat none.
/// `coupon_exists`: the claims' coupon exists.
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
    // it counts claims in the heap, by name.
    thread_local!(static PLAN: Plan = const {
        Plan::new(
            "with claimed as (
                 select coupon_name, pg_catalog.count(*) as claims,
                        pg_catalog.count(distinct user_id) as users, pg_catalog.max(id) as last
                 from {schema}.claims
                 where $1 is null or coupon_name operator(pg_catalog.=) $1
                 group by coupon_name
             ), book as (
                 select coalesce(c.name, claimed.coupon_name) as name, c.id is not null as known,
                        c.amount, c.remaining_amount,
                        coalesce(claims, 0) as claims, coalesce(users, 0) as users,
                        c.id, coalesce(last, 0) as last
                 from {schema}.coupons c
                 full join claimed on claimed.coupon_name operator(pg_catalog.=) c.name
                 where $1 is null
                    or coalesce(c.name, claimed.coupon_name) operator(pg_catalog.=) $1
             ), given as (
                 select case when c.is_called then c.last_value
                             else c.last_value operator(pg_catalog.-) 1 end as coupon_ids,
                        case when l.is_called then l.last_value
                             else l.last_value operator(pg_catalog.-) 1 end as claim_ids
                 from {schema}.coupons_id_seq c, {schema}.claims_id_seq l
             )
             select name::pg_catalog.text, invariant, holds, detail
             from book, given, lateral (values
                 (1, known, 'stock',
                  amount operator(pg_catalog.=) (remaining_amount operator(pg_catalog.+) claims),
                  pg_catalog.format('amount %s, remaining_amount %s, claims %s',
                                    amount, remaining_amount, claims)),
                 (2, known, 'range',
                  remaining_amount operator(pg_catalog.>=) 0
                      and remaining_amount operator(pg_catalog.<=) amount,
                  pg_catalog.format('amount %s, remaining_amount %s', amount, remaining_amount)),
                 (3, true, 'one_per_user', claims operator(pg_catalog.=) users,
                  pg_catalog.format('claims %s, users %s', claims, users)),
                 (4, id operator(pg_catalog.>) coupon_ids or last operator(pg_catalog.>) claim_ids,
                  'ids', false,
                  pg_catalog.format('id %s of %s given, last claim id %s of %s given',
                                    id, coupon_ids, last, claim_ids)),
                 (5, not known, 'coupon_exists', false,
                  pg_catalog.format('claims %s', claims))
             ) as checked (ordinal, applies, invariant, holds, detail)
             where applies
             order by name, ordinal",
            &[PgBuiltInOids::TEXTOID],
        )
    });
    let name = name.map(|name| args::text("name", Some(name)));
    let schema = Schema::of_call(fcinfo);
    let rows = Plan::rows(&PLAN, schema, &[name.into()], |row| {
        Ok((
            column(row, 1)?,
            column(row, 2)?,
            column(row, 3)?,
            column(row, 4)?,
        ))
    })?;
    Ok(TableIterator::new(rows))
}
