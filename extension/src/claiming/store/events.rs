//! The table `coupon_events`.
//!
//! A reader passes on the last id that it has seen, and must miss nothing. Ids are drawn before commits, so an
//! event with a lower id may become visible after one with a higher id. Therefore a transaction announces, before
//! it draws ids, that it may still write events above the last id that was drawn by then: with a shared lock of
//! that id, which ends with the transaction. Readers of all coupons stop before the lowest of these ids
//! (`api::event`). The events of one coupon need none of this: they are written in its turn.

use std::borrow::Cow;
use std::cell::Cell;

use pgrx::datetime::ToIsoString;
use pgrx::datum::TimestampWithTimeZone;
use pgrx::pg_sys;

use crate::claiming::store::coupons::Coupons;
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

/// The longest label of an actor, in characters.
const LONGEST_LABEL: usize = 255;

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

/// The table, open.
pub struct Log {
    table: Relation,
    ids: pg_sys::Oid,
}

impl Log {
    /// Opens the table; none if the extension is not yet updated to a version that has events.
    pub fn open(schema: Schema) -> Option<Log> {
        Coupons::open(schema).have_holds().then(|| Log {
            table: Relation::table(schema.relation(c"coupon_events")),
            ids: schema.relation(c"coupon_events_id_seq"),
        })
    }

    /// Inserts `events` of the coupon called `coupon_name`, which happened at the moment `at`, in the coupon's turn.
    ///
    /// # Errors
    /// Any error of a trigger.
    pub fn insert(&self, coupon_name: Text, at: i64, events: &[Event<'_>]) -> Inserted<'_> {
        let user = session::user();
        let label = session::actor();
        let mut writer = Writer::new(&self.table, None, &[]);
        self.announce();
        writer.begin();
        for event in events {
            let actor = match event.actor.or(label.as_deref()) {
                Some(label) => &format!("{user}/{}", plain(label)),
                None => &user,
            };
            writer.insert(&[
                ID.of(session::next_value(self.ids)),
                COUPON_NAME.of(coupon_name),
                KIND.of(Text::new(event.kind)),
                AT.of(at),
                ACTOR.of(Text::new(actor)),
                DETAILS.of(Json::new(event.details.clone())),
            ]);
        }
        Inserted(writer)
    }

    /// Keeps readers from passing the ids that this transaction draws from now on.
    fn announce(&self) {
        let table = self.table.oid();
        let lock = |id| Lock::new(Release::WithOthers, table, id);
        let locked = LOCKED.get();
        // It ends with a rolled back savepoint.
        if locked.is_some_and(|(oid, id)| oid == table && lock(id).is_shared()) {
            return;
        }
        let last = session::last_value(self.ids);
        lock(last).share();
        LOCKED.set(Some((table, last)));
    }
}

/// Events that are inserted, and whose triggers have yet to run.
pub struct Inserted<'t>(Writer<'t>);

impl Inserted<'_> {
    /// Runs the triggers.
    ///
    /// # Errors
    /// Any error of a trigger.
    pub fn end(mut self) {
        self.0.end();
    }
}

/// Writes `events` of the coupon called `coupon_name`, which happened at the moment `at`, in the coupon's turn, if
/// the extension has events.
///
/// # Errors
/// Any error of a trigger.
pub fn write(schema: Schema, coupon_name: Text, at: i64, events: &[Event<'_>]) {
    if let Some(log) = Log::open(schema) {
        log.insert(coupon_name, at, events).end();
    }
}

/// The label as events keep it: its first 255 characters, with a question mark for each control character.
fn plain(label: &str) -> String {
    let characters = label.chars().take(LONGEST_LABEL);
    characters
        .map(|it| if it.is_control() { '?' } else { it })
        .collect()
}

/// A moment in the details of an event: ISO 8601 in UTC.
pub fn moment(moment: i64) -> String {
    match moment {
        i64::MIN => "-infinity".to_owned(),
        i64::MAX => "infinity".to_owned(),
        _ => TimestampWithTimeZone::try_from(moment)
            .map(|moment| format!("{}Z", iso_8601(&moment.to_utc().to_iso_string())))
            .unwrap_or_default(),
    }
}

/// Writes PostgreSQL's years before Christ as ISO 8601 does, which has a year 0.
fn iso_8601(moment: &str) -> Cow<'_, str> {
    let parts = moment
        .strip_suffix(" BC")
        .and_then(|moment| moment.split_once('-'))
        .and_then(|(year, day)| Some((year.parse::<i32>().ok()?, day)));
    match parts {
        Some((1, day)) => format!("0000-{day}").into(),
        Some((year, day)) => format!("{:05}-{day}", 1 - year).into(),
        None => moment.into(),
    }
}
