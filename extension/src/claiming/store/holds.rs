//! The table `holds`.

use std::cell::OnceCell;
use std::collections::HashMap;

use crate::pg::column::{Column, Text};
use crate::pg::lookup::Lookup;
use crate::pg::relation::{Relation, Row, Version};
use crate::pg::schema::Schema;
use crate::pg::writer::Writer;

const COUPON_NAME: Column<Text> = Column::new(1);
const USER_ID: Column<Text> = Column::new(2);
const EXPIRES_AT: Column<i64> = Column::new(3);
const CREATED_AT: Column<i64> = Column::new(4);
const REQUEST_KEY: Column<Text> = Column::new(5);

/// The first span of time of a search in the order of expiry, in microseconds.
const SPAN: i64 = 2;

/// The factor between two spans.
const WIDENING: i64 = 1024;

/// The table, open with the index that it is searched by for a user.
pub struct Holds {
    schema: Schema,
    table: Relation,
    by_user: Relation,
    /// The index in the order of expiry, opened when it is needed first: most calls do not.
    by_expiry: OnceCell<Relation>,
}

impl Holds {
    /// Opens the table for reading; holds the locks of a `select`. The extension must have it: see
    /// [`Coupons::have_holds`](super::coupons::Coupons::have_holds).
    pub fn open(schema: Schema) -> Holds {
        let table = Relation::table(schema.relation(c"holds"));
        Holds {
            by_user: Relation::index(schema.index(table.oid(), &[c"holds_pkey"])),
            by_expiry: OnceCell::new(),
            schema,
            table,
        }
    }

    fn by_expiry(&self) -> &Relation {
        self.by_expiry.get_or_init(|| {
            let names = [c"holds_coupon_name_expires_at_idx"];
            Relation::index(self.schema.index(self.table.oid(), &names))
        })
    }

    /// Prepares to search it, under the active snapshot.
    pub fn search(&self) -> HoldSearch<'_> {
        HoldSearch {
            by_user: Lookup::new(
                &self.table,
                &self.by_user,
                [COUPON_NAME.key(), USER_ID.key()],
            ),
            by_expiry: None,
            holds: self,
            span: None,
        }
    }

    /// A hold on the coupon called `name`, or any hold if there is no name, under the active snapshot.
    pub fn any(&self, name: Option<Text>) -> Option<Version> {
        let (table, index) = (&self.table, &self.by_user);
        match name {
            Some(name) => Lookup::new(table, index, [COUPON_NAME.key()])
                .find([COUPON_NAME.of(name)])
                .map(Row::version),
            None => Lookup::new(table, index, []).find([]).map(Row::version),
        }
    }

    /// All `held` holds on the coupon called `name` by their users, under the active snapshot; none if the index has more
    /// than `most` entries of the coupon. These may be entries of holds that are gone.
    pub fn all(&self, name: Text, held: usize, most: usize) -> Option<HashMap<String, Held>> {
        let mut holds = HashMap::with_capacity(held.min(most));
        let is_complete = Lookup::new(&self.table, &self.by_user, [COUPON_NAME.key()]).each(
            [COUPON_NAME.of(name)],
            most,
            |row| {
                let hold = Hold(row);
                let user_id = hold.user_id().map(Text::string).unwrap_or_default();
                holds.insert(user_id, hold.held());
            },
        );
        is_complete.then_some(holds)
    }

    /// Locks it as an `insert` or a `delete` does, and prepares to write.
    pub fn write(&self) -> HoldWriter<'_> {
        HoldWriter {
            writer: Writer::new(&self.table, None, &[]),
            has_user_triggers: self.table.has_user_triggers(None),
        }
    }
}

/// A hold's row.
#[derive(Clone, Copy)]
pub struct Hold<'a>(Row<'a>);

impl Hold<'_> {
    /// The user for whom the piece is held.
    pub fn user_id(self) -> Option<Text> {
        self.0.get(USER_ID)
    }

    /// The first moment at which it no longer can be confirmed.
    pub fn expires_at(self) -> i64 {
        self.0.get(EXPIRES_AT).unwrap_or(i64::MIN)
    }

    /// The key of the request that made it.
    pub fn request_key(self) -> Option<Text> {
        self.0.get(REQUEST_KEY)
    }

    /// The moment of the reservation.
    pub fn created_at(self) -> i64 {
        self.0.get(CREATED_AT).unwrap_or(0)
    }

    /// Its expiry and version, which outlive the look-up.
    pub fn held(self) -> Held {
        Held {
            expires_at: self.expires_at(),
            version: self.0.version(),
        }
    }
}

/// A hold that was found before.
#[derive(Clone, Copy)]
pub struct Held {
    /// The first moment at which it no longer can be confirmed.
    pub expires_at: i64,
    /// The version of its row.
    pub version: Version,
}

/// Searches the table by coupon and user, and by coupon in the order of expiry.
pub struct HoldSearch<'t> {
    holds: &'t Holds,
    by_user: Lookup<'t, 2>,
    by_expiry: Option<Lookup<'t, 3>>,
    /// The span of expiries in which the search in their order is, and its coupon.
    span: Option<(Text, i64, i64)>,
}

impl<'t> HoldSearch<'t> {
    /// The hold of `user_id` on `coupon_name`.
    pub fn find(&mut self, user_id: Text, coupon_name: Text) -> Option<Hold<'_>> {
        self.by_user
            .find([COUPON_NAME.of(coupon_name), USER_ID.of(user_id)])
            .map(Hold)
    }

    /// The same if there is likely none.
    pub fn find_rare(&mut self, user_id: Text, coupon_name: Text) -> Option<Hold<'_>> {
        self.by_user
            .find_rare([COUPON_NAME.of(coupon_name), USER_ID.of(user_id)])
            .map(Hold)
    }

    /// Finds the hold of `user_id` on `coupon_name` again, which was this `version`.
    pub fn find_again(
        &mut self,
        version: Version,
        user_id: Text,
        coupon_name: Text,
    ) -> Option<Hold<'_>> {
        if self.by_user.find_again(version) {
            return Some(Hold(self.by_user.found()));
        }
        self.find(user_id, coupon_name)
    }

    /// The hold on `coupon_name` that expires first of those that expire at `moment` or later. The search does
    /// not see those before, nor what is left of them in the index while an old snapshot lives.
    pub fn first_from(&mut self, coupon_name: Text, moment: i64) -> Option<Hold<'_>> {
        self.span = Some((coupon_name, moment, SPAN));
        self.search_on(moment)
    }

    /// The hold that expires next after the one that `first_from` or this last found.
    pub fn next(&mut self) -> Option<Hold<'_>> {
        if self.by_expiry().next().is_some() {
            return Some(Hold(self.by_expiry().found()));
        }
        let (_, from, span) = self.span?;
        let next = from.checked_add(span)?.checked_add(1)?;
        self.search_on(next)
    }

    /// Searches from `moment` on. An index scan looks at all of a page that its keys match, so the search goes in
    /// spans of time, each longer than the one before.
    fn search_on(&mut self, mut moment: i64) -> Option<Hold<'_>> {
        loop {
            let (coupon_name, _, span) = self.span?;
            let end = moment.saturating_add(span);
            self.span = Some((coupon_name, moment, span.saturating_mul(WIDENING)));
            let key = [
                COUPON_NAME.of(coupon_name),
                EXPIRES_AT.of(moment),
                EXPIRES_AT.of(end),
            ];
            if self.by_expiry().find_first(key).is_some() {
                self.span = Some((coupon_name, moment, span));
                return Some(Hold(self.by_expiry().found()));
            }
            if end == i64::MAX {
                self.span = None;
                return None;
            }
            moment = end + 1;
        }
    }

    /// The hold on `coupon_name` that expires last.
    pub fn last(&mut self, coupon_name: Text) -> Option<Hold<'_>> {
        self.by_expiry()
            .find([
                COUPON_NAME.of(coupon_name),
                EXPIRES_AT.of(i64::MIN),
                EXPIRES_AT.of(i64::MAX),
            ])
            .map(Hold)
    }

    /// Releases the rows last found.
    pub fn release(&mut self) {
        self.span = None;
        self.by_user.release();
        if let Some(by_expiry) = &mut self.by_expiry {
            by_expiry.release();
        }
    }

    /// Continues under the snapshot that is active now.
    pub fn renew(&mut self) {
        self.by_user.renew();
        if let Some(by_expiry) = &mut self.by_expiry {
            by_expiry.renew();
        }
    }

    fn by_expiry(&mut self) -> &mut Lookup<'t, 3> {
        let holds = self.holds;
        self.by_expiry.get_or_insert_with(|| {
            let key = [
                COUPON_NAME.key(),
                EXPIRES_AT.key_from(),
                EXPIRES_AT.key_to(),
            ];
            Lookup::new(&holds.table, holds.by_expiry(), key)
        })
    }
}

/// Writes to the table.
pub struct HoldWriter<'t> {
    writer: Writer<'t>,
    /// Users' triggers may change what is written.
    pub has_user_triggers: bool,
}

impl HoldWriter<'_> {
    /// Prepares for inserts.
    pub fn prepare_inserts(&mut self) {
        self.writer.prepare_inserts();
    }

    /// Inserts a hold.
    ///
    /// # Errors
    /// `23505`, `23514` if a unique key or a check is violated; any error of a trigger.
    pub fn insert(
        &mut self,
        coupon_name: Text,
        user_id: Text,
        created_at: i64,
        expires_at: i64,
        request_key: Option<Text>,
    ) {
        self.writer.begin();
        self.writer.insert(&[
            COUPON_NAME.of(coupon_name),
            USER_ID.of(user_id),
            EXPIRES_AT.of(expires_at),
            CREATED_AT.of(created_at),
            REQUEST_KEY.of_option(request_key),
        ]);
        self.writer.end();
    }

    /// Deletes the hold that `search` last found by its user.
    ///
    /// # Errors
    /// Any error of a trigger; `XX000` if a session that bypasses the functions changes it at the same moment.
    pub fn delete(&mut self, search: &HoldSearch<'_>) {
        self.writer.begin();
        self.writer.delete(search.by_user.found());
        self.writer.end();
    }
}
