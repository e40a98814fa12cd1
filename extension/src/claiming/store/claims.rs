//! The table `claims`.

use std::ffi::CStr;

use pgrx::pg_sys;

use crate::pg::btree::Gap;
use crate::pg::column::{Column, Text};
use crate::pg::lookup::Lookup;
use crate::pg::relation::{Relation, Row, Version};
use crate::pg::schema::Schema;
use crate::pg::session;
use crate::pg::writer::Writer;

const ID: Column<i64> = Column::new(1);
const USER_ID: Column<Text> = Column::new(2);
const COUPON_NAME: Column<Text> = Column::new(3);
const CLAIMED_AT: Column<i64> = Column::new(4);

/// The table, open with the index that it is searched by.
pub struct Claims {
    schema: Schema,
    table: Relation,
    by_user: Relation,
    /// Earlier releases have none.
    request_key: Option<Column<Text>>,
}

impl Claims {
    /// Opens the table for reading; holds the locks of a `select`.
    pub fn open(schema: Schema) -> Claims {
        let table = Relation::table(schema.relation(c"claims"));
        // The second name is that of 0.1.0.
        let keys = [
            c"claims_coupon_name_user_id_key",
            c"claims_user_id_coupon_name_key",
        ];
        let by_user = Relation::index(schema.index(table.oid(), &keys));
        Claims {
            request_key: table.column(c"request_key", pg_sys::VARCHAROID),
            schema,
            table,
            by_user,
        }
    }

    /// The table's OID.
    pub fn oid(&self) -> pg_sys::Oid {
        self.table.oid()
    }

    /// The name of the key that lets a user claim a coupon once.
    pub fn key(&self) -> &CStr {
        self.by_user.name()
    }

    /// A claim on the coupon called `name`, or any claim if there is no name, under the active snapshot.
    pub fn any(&self, name: Option<Text>) -> Option<Version> {
        let (table, index) = (&self.table, &self.by_user);
        match name {
            Some(name) => Lookup::new(table, index, [COUPON_NAME.key()])
                .find([COUPON_NAME.of(name)])
                .map(Row::version),
            None => Lookup::new(table, index, []).find([]).map(Row::version),
        }
    }

    /// The id of the newest claim on the coupon called `name`, under the active snapshot; 0 if there is none.
    pub fn last_id(&self, name: Text) -> i64 {
        let by_id = Relation::index(self.schema.index(self.table.oid(), &[c"claims_pkey"]));
        Lookup::new(&self.table, &by_id, [COUPON_NAME.key()])
            .find([COUPON_NAME.of(name)])
            .and_then(|row| row.get(ID))
            .unwrap_or(0)
    }

    /// Prepares to search it, under the active snapshot.
    pub fn search(&self) -> ClaimSearch<'_> {
        let key = [COUPON_NAME.key(), USER_ID.key()];
        ClaimSearch {
            by_user: Lookup::new(&self.table, &self.by_user, key),
            request_key: self.request_key,
        }
    }

    /// Locks it as an `insert` or a `delete` does, and prepares to write.
    pub fn write(&self) -> ClaimWriter<'_> {
        ClaimWriter {
            writer: Writer::new(&self.table, None, &[]),
            ids: self.schema.relation(c"claims_id_seq"),
            request_key: self.request_key,
            has_user_triggers: self.table.has_user_triggers(None),
        }
    }
}

/// A claim's row.
#[derive(Clone, Copy)]
pub struct Claim<'a> {
    row: Row<'a>,
    request_key: Option<Column<Text>>,
}

impl Claim<'_> {
    /// Its identity.
    pub fn id(self) -> Option<i64> {
        self.row.get(ID)
    }

    /// The key of the request that made it.
    pub fn request_key(self) -> Option<Text> {
        self.row.get(self.request_key?)
    }

    /// The moment at which it was made.
    pub fn claimed_at(self) -> i64 {
        self.row.get(CLAIMED_AT).unwrap_or(0)
    }

    /// The version of the row.
    pub fn version(self) -> Version {
        self.row.version()
    }
}

/// Searches the table by coupon and user.
pub struct ClaimSearch<'t> {
    by_user: Lookup<'t, 2>,
    request_key: Option<Column<Text>>,
}

impl ClaimSearch<'_> {
    /// The claim of `user_id` on `coupon_name`.
    pub fn find(&mut self, user_id: Text, coupon_name: Text) -> Option<Claim<'_>> {
        let request_key = self.request_key;
        self.by_user
            .find_rare([COUPON_NAME.of(coupon_name), USER_ID.of(user_id)])
            .map(|row| Claim { row, request_key })
    }

    /// Where the claim that was last not found would be in the index.
    pub fn gap(&self) -> Option<Gap> {
        self.by_user.gap()
    }

    /// Finds the claim of `user_id` on `coupon_name` again, which was this `version`. Returns true if it is there.
    pub fn find_again(&mut self, version: Version, user_id: Text, coupon_name: Text) -> bool {
        self.by_user.find_again(version) || self.find(user_id, coupon_name).is_some()
    }

    /// Locks the claim last found, of `user_id`; returns false if it was deleted or moved meanwhile. Only a
    /// session that bypasses the queue can make this wait.
    ///
    /// # Errors
    /// `40001` under repeatable read and serializable when the row changed after the snapshot.
    pub fn lock(&mut self, user_id: Text) -> bool {
        self.by_user.lock(USER_ID, user_id).is_some()
    }

    /// Releases the row last found.
    pub fn release(&mut self) {
        self.by_user.release();
    }

    /// Continues under the snapshot that is active now.
    pub fn renew(&mut self) {
        self.by_user.renew();
    }
}

/// Writes to the table.
pub struct ClaimWriter<'t> {
    writer: Writer<'t>,
    ids: pg_sys::Oid,
    request_key: Option<Column<Text>>,
    /// Users' triggers may change what is written.
    pub has_user_triggers: bool,
}

impl ClaimWriter<'_> {
    /// Returns true if nothing has changed a claim before it was inserted, as a trigger may do.
    pub fn are_as_given(&self) -> bool {
        self.writer.are_as_given
    }

    /// Prepares for inserts.
    pub fn prepare_inserts(&mut self) {
        self.writer.prepare_inserts();
    }

    /// Inserts a claim on `coupon_name`, made at the moment `claimed_at`, for each user with the key of the
    /// request, in their order; with the place at which there is none so far, if it is known.
    ///
    /// # Errors
    /// `23505`, `23514` if a unique key or a check is violated; any error of a trigger.
    pub fn insert(
        &mut self,
        coupon_name: Text,
        claimed_at: i64,
        claims: impl Iterator<Item = (Text, Option<Text>, Option<Gap>)>,
    ) {
        self.writer.begin();
        for (user_id, request_key, gap) in claims {
            let id = ID.of(session::next_value(self.ids));
            let user_id = USER_ID.of(user_id);
            let coupon_name = COUPON_NAME.of(coupon_name);
            let claimed_at = CLAIMED_AT.of(claimed_at);
            let cells = [id, user_id, coupon_name, claimed_at];
            match self.request_key {
                Some(column) => {
                    let [id, user_id, coupon_name, claimed_at] = cells;
                    let request_key = column.of_option(request_key);
                    self.writer
                        .gather(&[id, user_id, coupon_name, claimed_at, request_key], gap);
                }
                None => self.writer.gather(&cells, gap),
            }
        }
        self.writer.end();
    }

    /// Deletes the claim that `search` last locked.
    ///
    /// # Errors
    /// Any error of a trigger.
    pub fn delete(&mut self, search: &ClaimSearch<'_>) {
        self.writer.begin();
        self.writer.delete(search.by_user.found());
        self.writer.end();
    }
}
