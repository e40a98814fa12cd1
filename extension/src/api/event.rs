//! Events: `honcho_list_events` and `honcho_purge_events`.

use pgrx::JsonB;
use pgrx::datum::TimestampWithTimeZone;
use pgrx::prelude::*;
use pgrx::spi;

use crate::api::args::{self, MAX_PAGE};
use crate::claiming::durability;
use crate::pg::plan::{Plan, column};
use crate::pg::rows::TableIterator;
use crate::pg::schema::Schema;
use crate::pg::session::{self, Snapshot};

/// Reads a page of the events of one coupon or of all, in the order of their ids.
///
/// # Arguments
/// `after`: the id of the last event that was read, 0 for the first page. `max`: the most rows to return, 1 to
/// 10,000. `coupon_name`: 1 to 255 characters; null for the events of all coupons.
///
/// # Returns
/// The events with greater ids, ascending, that are durable. Who passes the last id on misses none: the page
/// ends before the first event that a transaction in progress may still write.
///
/// # Errors
/// `22004`, `22023` for a bad argument; `0A000` under repeatable read and serializable; `55000` on a standby,
/// unless it is for one coupon.
#[pg_extern(volatile, parallel_unsafe, security_definer)]
#[search_path(pg_catalog, pg_temp)]
#[allow(clippy::type_complexity)]
fn honcho_list_events(
    after: default!(Option<i64>, 0),
    max: default!(Option<i32>, 1000),
    coupon_name: default!(Option<&str>, "null"),
    fcinfo: pg_sys::FunctionCallInfo,
) -> spi::Result<
    TableIterator<
        'static,
        (
            name!(id, i64),
            name!(coupon_name, String),
            name!(kind, String),
            name!(at, TimestampWithTimeZone),
            name!(actor, String),
            name!(details, JsonB),
        ),
    >,
> {
    thread_local! {
        static OF_ALL: Plan = const {
            Plan::new(
                "select id, coupon_name::pg_catalog.text, kind, at, actor, details, xmin
                 from {schema}.coupon_events
                 where id operator(pg_catalog.>) $1 and id operator(pg_catalog.<=) $2
                 order by id limit $3",
                &[
                    PgBuiltInOids::INT8OID,
                    PgBuiltInOids::INT8OID,
                    PgBuiltInOids::INT4OID,
                ],
            )
        };
        static OF_COUPON: Plan = const {
            Plan::new(
                "select id, coupon_name::pg_catalog.text, kind, at, actor, details, xmin
                 from {schema}.coupon_events
                 where coupon_name operator(pg_catalog.=) $1 and id operator(pg_catalog.>) $2
                 order by id limit $3",
                &[
                    PgBuiltInOids::TEXTOID,
                    PgBuiltInOids::INT8OID,
                    PgBuiltInOids::INT4OID,
                ],
            )
        };
    }
    let after = args::not_null("after", after);
    let max = args::int("max", max, 1..=MAX_PAGE);
    let coupon_name = coupon_name.map(|name| args::text("coupon_name", Some(name)));
    let schema = Schema::of_call(fcinfo);
    session::require_read_committed("honcho_list_events()");
    session::next_command();
    let mut rests_on = durability::NOTHING;
    let read = |row: &spi::SpiHeapTupleData<'_>| {
        let writer: pg_sys::TransactionId = column(row, 7)?;
        // What this transaction has written may still be rolled back.
        if durability::is_own(writer) {
            return Ok(None);
        }
        rests_on = rests_on.max(durability::commit_position(writer));
        Ok(Some((
            column(row, 1)?,
            column(row, 2)?,
            column(row, 3)?,
            column(row, 4)?,
            column(row, 5)?,
            row.get(6)?.ok_or(spi::Error::InvalidPosition)?,
        )))
    };
    let rows = match coupon_name {
        Some(coupon_name) => {
            // They are written in the coupon's turn, so they become visible in the order of their ids.
            let _snapshot = Snapshot::push();
            let arguments = [coupon_name.into(), after.into(), max.into()];
            Plan::rows(&OF_COUPON, schema, &arguments, read)?
        }
        None => {
            let last = last_settled(schema)?;
            // After that: it sees all that was settled by then.
            let _snapshot = Snapshot::push();
            Plan::rows(
                &OF_ALL,
                schema,
                &[after.into(), last.into(), max.into()],
                read,
            )?
        }
    };
    durability::wait_until_durable(rests_on);
    Ok(TableIterator::new(rows.into_iter().flatten()))
}

/// The last id up to which no transaction in progress may still write an event
/// (`claiming::store::events`).
///
/// # Errors
/// `55000` on a standby, which does not know the transactions in progress.
fn last_settled(schema: Schema) -> spi::Result<i64> {
    thread_local!(static PLAN: Plan = const {
        Plan::new(
            "select pg_catalog.min(
                 (l.objsubid::pg_catalog.int8 operator(pg_catalog.<<) 32)
                 operator(pg_catalog.+) l.objid::pg_catalog.int8
             )
             from pg_catalog.pg_lock_status() l
             where l.locktype operator(pg_catalog.=) 'object'
               and l.classid operator(pg_catalog.=) $1
               and l.database operator(pg_catalog.=) (
                   select d.oid from pg_catalog.pg_database d
                   where d.datname operator(pg_catalog.=) pg_catalog.current_database()
               )",
            &[PgBuiltInOids::OIDOID],
        )
    });
    if session::is_standby() {
        ereport!(
            ERROR,
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "the events of all coupons cannot be listed on a standby",
            "List those of one coupon, or ask the primary."
        );
    }
    // Before the locks: an id that was drawn by now has its lock, or its transaction has ended.
    let last = session::last_value(schema.relation(c"coupon_events_id_seq"));
    let table = schema.relation(c"coupon_events");
    let locked = Plan::rows(&PLAN, schema, &[table.into()], |row| row.get::<i64>(1))?;
    Ok(locked.into_iter().flatten().fold(last, i64::min))
}

/// Deletes old events.
///
/// # Arguments
/// `before`: events before this moment are deleted, except for the newest event of all coupons. `max`: the largest
/// number of events to delete, at least 1; the oldest first.
///
/// # Returns
/// The number of events that were deleted.
///
/// # Errors
/// `22004`, `22023` for a bad argument; `25006` in a read-only transaction.
///
/// # Locks
/// The deleted rows, until the transaction ends.
#[pg_extern(volatile, parallel_unsafe, security_definer)]
#[search_path(pg_catalog, pg_temp)]
fn honcho_purge_events(
    before: Option<TimestampWithTimeZone>,
    max: default!(Option<i32>, 10000),
    fcinfo: pg_sys::FunctionCallInfo,
) -> spi::Result<i32> {
    thread_local!(static PLAN: Plan = const {
        Plan::new(
            "delete from {schema}.coupon_events e
             where e.id operator(pg_catalog.=) any (array(
                 select o.id from {schema}.coupon_events o
                 where o.at operator(pg_catalog.<) $1
                   and o.id operator(pg_catalog.<) (select pg_catalog.max(l.id) from {schema}.coupon_events l)
                 order by o.id limit $2
                 for update skip locked
             ))",
            &[PgBuiltInOids::TIMESTAMPTZOID, PgBuiltInOids::INT4OID],
        )
    });
    let before = args::not_null("before", before);
    let max = args::int("max", max, 1..=i32::MAX);
    session::require_writable(c"honcho_purge_events()");
    let schema = Schema::of_call(fcinfo);
    let deleted = Plan::write(&PLAN, schema, &[before.into(), max.into()])?;
    Ok(deleted as i32)
}
