//! Tests that run inside PostgreSQL, for behaviour that is easier to see from Rust than from SQL.

#[pgrx::pg_schema]
#[allow(clippy::expect_used, reason = "a test fails by panicking")]
mod tests {
    use pgrx::prelude::*;

    use std::collections::HashSet;
    use std::time::Duration;

    use crate::claiming::durability::Pace;
    use crate::claiming::outcome::Outcome;
    use crate::pg::column::{Column, Text};
    use crate::pg::lookup::Lookup;
    use crate::pg::relation::Relation;
    use crate::pg::session::{self, Snapshot};
    use crate::pg::writer::Writer;

    fn create(name: &str, amount: i32) {
        let created = Spi::get_one_with_args::<bool>(
            "select honcho_create_coupon($1, $2)",
            &[name.into(), amount.into()],
        );
        assert_eq!(created, Ok(Some(true)));
    }

    fn claim(user_id: &str, coupon_name: &str) -> String {
        Spi::get_one_with_args::<String>(
            "select honcho_claim($1, $2)::text",
            &[user_id.into(), coupon_name.into()],
        )
        .expect("a claim")
        .expect("an outcome")
    }

    fn oid_of(relation: &str) -> pg_sys::Oid {
        let oid = "select to_regclass($1)::oid";
        Spi::get_one_with_args(oid, &[relation.into()])
            .expect("a query")
            .expect("a relation")
    }

    fn claim_batch(coupon_name: &str, user_ids: &[String]) -> Vec<String> {
        Spi::connect(|client| {
            client
                .select(
                    "select outcome::text from honcho_claim_batch($1, $2) order by ordinal",
                    None,
                    &[coupon_name.into(), user_ids.to_vec().into()],
                )
                .expect("a batch")
                .map(|row| row.get::<String>(1).expect("a text").expect("an outcome"))
                .collect()
        })
    }

    fn assert_books() {
        let broken = Spi::get_one::<i64>("select count(*) from honcho_verify() where not holds");
        assert_eq!(broken, Ok(Some(0)));
    }

    /// A flush that is put off holds up all commits of the server.
    #[pg_test]
    fn one_stall_of_the_disk_puts_no_flush_off_for_long() {
        let most = Duration::from_millis(2);
        let mut pace = Pace::default();
        for flush in [Duration::from_secs(20), Duration::MAX] {
            for _ in 0..20 {
                pace = pace.after(flush, true);
                assert!(pace.delay().expect("a delay") <= most);
            }
        }
        // A slow disk is worth a wait; an idle server or a fast disk is not.
        for _ in 0..50 {
            pace = pace.after(Duration::from_millis(2), true);
        }
        let delay = pace.delay().expect("a delay");
        assert!(delay > most / 5 && delay < most / 3);
        assert_eq!(pace.after(Duration::from_millis(2), false).delay(), None);
        for _ in 0..50 {
            pace = pace.after(Duration::from_micros(100), true);
        }
        assert_eq!(pace.delay(), None);
    }

    /// Each refusal of a claim has a SQLSTATE of its own, too.
    #[pg_test]
    fn the_outcomes_are_the_values_of_the_enum() {
        let labels: Vec<String> = Outcome::ALL
            .iter()
            .map(|outcome| outcome.label().to_owned())
            .collect();
        let values = Spi::get_one::<Vec<String>>("select enum_range(null::honcho_outcome)::text[]");
        assert_eq!(values, Ok(Some(labels)));
        let refusals = [
            Outcome::NotFound,
            Outcome::AlreadyClaimed,
            Outcome::NotStarted,
            Outcome::Ended,
            Outcome::Paused,
            Outcome::AllHeld,
            Outcome::SoldOut,
        ];
        let sqlstates: HashSet<_> = refusals
            .iter()
            .filter_map(|outcome| outcome.refusal().map(|refusal| refusal.sqlstate))
            .collect();
        assert_eq!(sqlstates.len(), refusals.len());
    }

    #[pg_test]
    fn a_claim_is_seen_by_the_next_command_of_its_transaction() {
        create("PROMO", 1);
        assert_eq!(claim("ann", "PROMO"), "claimed");
        assert_eq!(claim("ann", "PROMO"), "already_claimed");
        assert_eq!(claim("bob", "PROMO"), "sold_out");
        assert_books();
    }

    #[pg_test(error = "user_ids[3] must not be empty")]
    fn a_bad_element_is_named_by_its_position() {
        create("PROMO", 5);
        claim_batch("PROMO", &["ann".into(), "bob".into(), String::new()]);
    }

    /// A batch has the outcomes of its claims one by one, for any users, also repeated ones.
    #[pg_test]
    fn a_batch_is_its_claims_in_order() {
        // A small linear congruential generator: every run tries the same thousand batches.
        let mut state = 42_u64;
        let mut random = |below: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) % below
        };
        for round in 0..250 {
            let (batched, single) = (format!("batched {round}"), format!("single {round}"));
            let stock = random(12) as i32 + 1;
            create(&batched, stock);
            create(&single, stock);
            for _ in 0..4 {
                let user_ids: Vec<String> = (0..random(9))
                    .map(|_| format!("user {}", random(15)))
                    .collect();
                let one_by_one: Vec<String> = user_ids
                    .iter()
                    .map(|user_id| claim(user_id, &single))
                    .collect();
                assert_eq!(claim_batch(&batched, &user_ids), one_by_one, "{user_ids:?}");
            }
        }
        assert_books();
    }

    /// Numbers and texts are looked up alike, and the order of the columns is the index's.
    #[pg_test]
    fn a_row_is_found_and_locked_by_keys_of_several_types() {
        const ID: Column<i64> = Column::new(1);
        const COUPON_NAME: Column<Text> = Column::new(3);
        create("PROMO", 2);
        assert_eq!(claim("ann", "PROMO"), "claimed");
        assert_eq!(claim("bob", "PROMO"), "claimed");
        // Other tests take ids meanwhile.
        let ids = Spi::get_two::<i64, i64>("select min(id), max(id) from claims");
        let (Some(first), Some(last)) = ids.expect("a query") else {
            panic!("no claims");
        };
        let claims = Relation::table(oid_of("claims"));
        let key = Relation::index(oid_of("claims_pkey"));
        let _snapshot = Snapshot::push();
        let mut lookup = Lookup::new(&claims, &key, [ID.key(), COUPON_NAME.key()]);
        let name = Text::new("PROMO");
        for (id, is_there) in [(last, true), (last + 1, false), (first, true)] {
            let row = lookup.find([ID.of(id), COUPON_NAME.of(name)]);
            let found = row.map(|row| row.get(ID));
            assert_eq!(found, is_there.then_some(Some(id)));
        }
        assert!(lookup.lock(ID, first).is_some());
    }

    #[pg_test]
    fn an_update_sets_several_columns_and_leaves_the_others() {
        const ID: Column<i64> = Column::new(1);
        const AMOUNT: Column<i32> = Column::new(3);
        const REMAINING_AMOUNT: Column<i32> = Column::new(4);
        create("PROMO", 1);
        let id = Spi::get_one::<i64>("select id from coupons");
        let id = id.expect("a query").expect("an id");
        let coupons = Relation::table(oid_of("coupons"));
        let key = Relation::index(oid_of("coupons_pkey"));
        let _snapshot = Snapshot::push();
        let mut lookup = Lookup::new(&coupons, &key, [ID.key()]);
        assert!(lookup.find([ID.of(id)]).is_some());
        let row = lookup.lock(ID, id).expect("a coupon");
        let mut writer = Writer::new(&coupons, None, &[]);
        writer.begin();
        writer.update(row, &[REMAINING_AMOUNT.of(7), AMOUNT.of(9)]);
        writer.end();
        session::next_command();
        let is_written = Spi::get_one::<bool>(
            "select (name, amount, remaining_amount, paused) = ('PROMO', 9, 7, false)
                    and created_at = now() and starts_at is null and ends_at is null from coupons",
        );
        assert_eq!(is_written, Ok(Some(true)));
    }

    #[pg_test]
    fn early_lock_release_can_be_set_by_every_role() {
        assert_eq!(
            Spi::get_one::<String>("show honcho.early_lock_release"),
            Ok(Some("on".into()))
        );
        Spi::run("set local honcho.early_lock_release = off").expect("a setting");
        create("PROMO", 1);
        assert_eq!(claim("ann", "PROMO"), "claimed");
    }
}
