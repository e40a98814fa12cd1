//! Tests that run inside PostgreSQL, for what is easier to see from Rust than from SQL.

#[pgrx::pg_schema]
#[allow(clippy::expect_used, reason = "a test fails by panicking")]
mod tests {
    use pgrx::prelude::*;

    use std::collections::HashSet;
    use std::time::Duration;

    use crate::claiming::durability::Pace;
    use crate::claiming::outcome::Outcome;

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

    /// All commits of the server wait behind a flush that is put off.
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
        // A disk that is merely slow is worth a wait; an idle server's or a fast disk's flush is not.
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

    /// Each refusal has a SQLSTATE of its own, too.
    #[pg_test]
    fn the_outcomes_are_the_values_of_the_enum() {
        let labels: Vec<String> = Outcome::ALL
            .iter()
            .map(|outcome| outcome.label().to_owned())
            .collect();
        let values = Spi::get_one::<Vec<String>>("select enum_range(null::honcho_outcome)::text[]");
        assert_eq!(values, Ok(Some(labels)));
        let sqlstates: HashSet<_> = Outcome::ALL
            .iter()
            .filter_map(|outcome| outcome.refusal().map(|refusal| refusal.sqlstate))
            .collect();
        assert_eq!(sqlstates.len(), Outcome::ALL.len() - 1);
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

    /// A batch is the same as its claims one by one, whatever users it names and however often.
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

    #[pg_test]
    fn early_lock_release_is_a_setting_of_anyone() {
        assert_eq!(
            Spi::get_one::<String>("show honcho.early_lock_release"),
            Ok(Some("on".into()))
        );
        Spi::run("set local honcho.early_lock_release = off").expect("a setting");
        create("PROMO", 1);
        assert_eq!(claim("ann", "PROMO"), "claimed");
    }
}
