//! The table `coupon_events`.
//!
//! A reader passes on the last id that it has seen, and must miss nothing. Ids are drawn before commits, so an
//! event with a lower id may become visible after one with a higher id. Therefore a transaction announces, before
//! it draws ids, that it may still write events above the last id that was drawn by then: with a shared lock of
//! that id, which ends with the transaction. Readers of all coupons stop before the lowest of these ids
//! (`api::event`). The events of one coupon need none of this: they are written in its turn.

use std::cell::Cell;

use pgrx::datetime::ToIsoString;
use pgrx::datum::TimestampWithTimeZone;
use pgrx::pg_sys;

use crate::pg::column::{Column, Json, Text};
use crate::pg::lock::{Lock, Release};
use crate::pg::relation::Relation;
use crate::pg::schema::Schema;
use crate::pg::session;
use crate::pg::writer::Writer;

const ID: Column<i64> = Column::new(1);
const COUPON_NAME: Column<Text> = Column::new(2);
const KIND: Column<Text> = Column::new(3);
const AT: Column<i64> = Column::new(4);
const ACTOR: Column<Text> = Column::new(5);
const DETAILS: Column<Json> = Column::new(6);

thread_local! {
    /// The last id that this session has locked.
    static LOCKED: Cell<Option<(pg_sys::Oid, i64)>> = const { Cell::new(None) };
}

/// A new event of a coupon.
pub struct Event<'a> {
    /// Its kind.
    pub kind: &'static str,
    /// The label of the actor; none for that of the session.
    pub actor: Option<&'a str>,
    /// Details.
    pub details: serde_json::Value,
}

/// Writes `events` of the coupon called `coupon_name`, which happened at the moment `at`, in the coupon's turn.
/// Does nothing if the extension is not yet updated to a version that has events.
///
/// # Errors
/// Any error of a trigger.
pub fn write(schema: Schema, coupon_name: Text, at: i64, events: &[Event<'_>]) {
    let Some(table) = schema.find_relation(c"coupon_events") else {
        return;
    };
    if events.is_empty() {
        return;
    }
    let table = Relation::table(table);
    let ids = schema.relation(c"coupon_events_id_seq");
    let user = session::user();
    let label = session::actor();
    let mut writer = Writer::new(&table, None);
    announce(&table, ids);
    writer.begin();
    for event in events {
        let actor = match event.actor.or(label.as_deref()) {
            Some(label) => &format!("{user}/{label}"),
            None => &user,
        };
        writer.insert(&[
            ID.of(session::next_value(ids)),
            COUPON_NAME.of(coupon_name),
            KIND.of(Text::new(event.kind)),
            AT.of(at),
            ACTOR.of(Text::new(actor)),
            DETAILS.of(Json::new(event.details.clone())),
        ]);
    }
    writer.end();
}

/// A moment in the details of an event: ISO 8601 in UTC.
pub fn moment(moment: i64) -> String {
    match moment {
        i64::MIN => "-infinity".to_owned(),
        i64::MAX => "infinity".to_owned(),
        _ => TimestampWithTimeZone::try_from(moment)
            .map(|moment| format!("{}Z", moment.to_utc().to_iso_string()))
            .unwrap_or_default(),
    }
}

/// Keeps readers from passing the ids that this transaction draws from now on.
fn announce(table: &Relation, ids: pg_sys::Oid) {
    let lock = |id| Lock::new(Release::WithOthers, table.oid(), id);
    let locked = LOCKED.get();
    // It ends with a rolled back savepoint.
    if locked.is_some_and(|(oid, id)| oid == table.oid() && lock(id).is_shared()) {
        return;
    }
    let last = session::last_value(ids);
    lock(last).share();
    LOCKED.set(Some((table.oid(), last)));
}
