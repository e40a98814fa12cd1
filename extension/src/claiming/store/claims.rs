//! The table `claims`.

use std::ffi::CStr;

use pgrx::pg_sys;

use crate::pg::column::{Column, Text};
use crate::pg::lookup::Lookup;
use crate::pg::relation::{Relation, Row};
use crate::pg::schema::Schema;
use crate::pg::session;
use crate::pg::writer::Writer;

const ID: Column<i64> = Column::new(1);
const USER_ID: Column<Text> = Column::new(2);
const COUPON_NAME: Column<Text> = Column::new(3);
const CLAIMED_AT: Column<i64> = Column::new(4);
const REQUEST_KEY: Column<Text> = Column::new(5);

/// The table, open with the index that it is searched by.
pub struct Claims {
    schema: Schema,
    table: Relation,
    by_user: Relation,
    /// Earlier releases have none.
    has_request_keys: bool,
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
            has_request_keys: table.columns() >= REQUEST_KEY.attribute(),
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

    /// Returns true if there is a claim on the coupon called `name`, or any claim if there is no name,
    /// under the active snapshot.
    pub fn exist(&self, name: Option<Text>) -> bool {
        let (table, index) = (&self.table, &self.by_user);
        match name {
            Some(name) => Lookup::new(table, index, [COUPON_NAME.key()])
                .find([COUPON_NAME.of(name)])
                .is_some(),
            None => Lookup::new(table, index, []).find([]).is_some(),
        }
    }

    /// The id of the newest claim on the coupon called `name`, under the active snapshot; 0 if there is none.
    pub fn last_id(&self, name: Text) -> i64 {
        let by_id = Relation::index(self.schema.index(self.table.oid(), &[c"claims_pkey"]));
        Lookup::new(&self.table, &by_id, [COUPON_NAME.key()])
            .find_last([COUPON_NAME.of(name)])
            .and_then(|row| row.get(ID))
            .unwrap_or(0)
    }

    /// Prepares to search it, under the active snapshot.
    pub fn search(&self) -> ClaimSearch<'_> {
        let key = [COUPON_NAME.key(), USER_ID.key()];
        ClaimSearch(Lookup::new(&self.table, &self.by_user, key))
    }

    /// Locks it as an `insert` or a `delete` does, and prepares to write.
    pub fn write(&self) -> ClaimWriter<'_> {
        ClaimWriter {
            writer: Writer::new(&self.table, None),
            ids: self.schema.relation(c"claims_id_seq"),
            has_request_keys: self.has_request_keys,
            has_user_triggers: self.table.has_user_triggers(None),
        }
    }
}

/// A claim's row.
#[derive(Clone, Copy)]
pub struct Claim<'a>(Row<'a>);

impl Claim<'_> {
    /// Its identity.
    pub fn id(self) -> Option<i64> {
        self.0.get(ID)
    }

    /// The key of the request that made it.
    pub fn request_key(self) -> Option<Text> {
        self.0.get_added(REQUEST_KEY)
    }

    /// The transaction that wrote this version.
    pub fn written_by(self) -> pg_sys::TransactionId {
        self.0.written_by()
    }
}

/// Searches the table by coupon and user.
pub struct ClaimSearch<'t>(Lookup<'t, 2>);

impl ClaimSearch<'_> {
    /// The claim of `user_id` on `coupon_name`.
    pub fn find(&mut self, user_id: Text, coupon_name: Text) -> Option<Claim<'_>> {
        self.0
            .find([COUPON_NAME.of(coupon_name), USER_ID.of(user_id)])
            .map(Claim)
    }

    /// Releases the row last found.
    pub fn release(&mut self) {
        self.0.release();
    }

    /// Continues under the snapshot that is active now.
    pub fn renew(&mut self) {
        self.0.renew();
    }
}

/// Writes to the table.
pub struct ClaimWriter<'t> {
    writer: Writer<'t>,
    ids: pg_sys::Oid,
    has_request_keys: bool,
    /// Users' triggers may change what is written.
    pub has_user_triggers: bool,
}

impl ClaimWriter<'_> {
    /// Inserts a claim on `coupon_name`, made at the moment `claimed_at`, for each user with the key of the
    /// request, in their order.
    ///
    /// # Errors
    /// `23505`, `23514` if a unique key or a check is violated; any error of a trigger.
    pub fn insert(
        &mut self,
        coupon_name: Text,
        claimed_at: i64,
        claims: impl Iterator<Item = (Text, Option<Text>)>,
    ) {
        self.writer.begin();
        for (user_id, request_key) in claims {
            let cells = [
                ID.of(session::next_value(self.ids)),
                USER_ID.of(user_id),
                COUPON_NAME.of(coupon_name),
                CLAIMED_AT.of(claimed_at),
                REQUEST_KEY.of_option(request_key),
            ];
            let count = cells.len() - usize::from(!self.has_request_keys);
            self.writer.insert(&cells[..count]);
        }
        self.writer.end();
    }

    /// Deletes the claim that `search` last found.
    ///
    /// # Errors
    /// Any error of a trigger; `XX000` if a session that bypasses the queue changes it at the same moment.
    pub fn delete(&mut self, search: &ClaimSearch<'_>) {
        self.writer.begin();
        self.writer.delete(search.0.found());
        self.writer.end();
    }
}
