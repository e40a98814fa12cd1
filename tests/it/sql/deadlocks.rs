//! All operations at random on three coupons: none of them deadlock, unless one transaction takes coupons in another
//! order than another.

use std::{
    collections::BTreeMap,
    env,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use fastrand::Rng;
use honcho_tests::eventually;
use tokio::task::JoinSet;
use tokio_postgres::{Client, SimpleQueryMessage};

const COUPONS: [&str; 3] = ["A", "B", "C"];

/// The length of the test; `HONCHO_TEST_SECONDS` sets another.
const SECONDS: u64 = 20;

/// A call of a random function on `coupon`, which may be refused but must not fail. If it is not the `last` of its
/// transaction, it takes the turn of no other coupon.
fn call(rng: &mut Rng, coupon: &str, last: bool) -> String {
    let user = format!("u{}", rng.u8(..40));
    let key = ["null", "'k1'", "'k2'"][rng.usize(..3)];
    match rng.u8(..42) {
        0..6 => format!("honcho_claim('{user}', '{coupon}', {key})"),
        6..9 => format!("honcho_reserve('{user}', '{coupon}', '1 hour', {key})"),
        // Some expire on the way.
        9..12 => format!("honcho_reserve('{user}', '{coupon}', '1 second', {key})"),
        12..16 => format!("honcho_confirm('{user}', '{coupon}')"),
        16..19 => format!("honcho_cancel('{user}', '{coupon}')"),
        19..24 => format!("honcho_release('{user}', '{coupon}')"),
        24..26 => format!(
            "honcho_claim_batch('{coupon}', array['{user}', 'u1', 'u2'], array[{key}, null, 'k']::text[])"
        ),
        26..30 => format!(
            "honcho_apply('{coupon}', '{{claim,reserve,confirm,cancel,release,reserve}}',
                          array['{user}', 'u3', 'u3', 'u4', 'u5', 'u4'],
                          array_fill('1 second'::interval, array[6]))"
        ),
        30..32 => format!("honcho_restock('{coupon}', {})", rng.i8(-3..4)),
        32 => format!(
            "honcho_update_coupon('{coupon}', paused => {})",
            rng.u8(..4) == 0
        ),
        33 => format!("honcho_update_coupon('{coupon}', {})", rng.u8(..9)),
        34 => format!("honcho_delete_coupon('{coupon}', {})", rng.u8(..3) == 0),
        35..37 => format!("honcho_create_coupon('{coupon}', 5)"),
        37 => format!("honcho_list_holds('{coupon}')"),
        38 => "honcho_list_events()".to_owned(),
        // Without a wait: coupons that were deleted and made again have other ids than the order of their names.
        39..41 if last => {
            format!("honcho_claim_many('{{{user},u1,u2}}', '{{{coupon},C,A}}', wait => false)")
        }
        _ => format!("honcho_get_stock('{coupon}')"),
    }
}

/// A transaction: one call, several on one coupon, or several on two of them in their order.
fn transaction(rng: &mut Rng) -> String {
    let one = rng.usize(..COUPONS.len());
    match rng.u8(..10) {
        0 => format!("select honcho_expire({})", rng.u8(1..9)),
        1..7 => format!("select {}", call(rng, COUPONS[one], true)),
        kind => {
            let two = if kind == 9 {
                rng.usize(one..COUPONS.len())
            } else {
                one
            };
            let mut sql = "begin;".to_owned();
            for (coupon, last) in [(one, false), (one, false), (two, true)] {
                let call = call(rng, COUPONS[coupon], last);
                match rng.u8(..4) {
                    0 => sql += &format!("savepoint s; select {call}; rollback to s;"),
                    _ => sql += &format!("select {call};"),
                }
            }
            sql + if rng.u8(..4) == 0 {
                "rollback"
            } else {
                "commit"
            }
        }
    }
}

/// Claims on several coupons at random, in any order, beside operations on single ones.
#[tokio::test]
async fn calls_for_several_coupons_never_deadlock() -> Result<()> {
    let database = crate::database().await?;
    let owner = database.connect().await?;
    let patience = format!(
        "alter database {} set deadlock_timeout = '10ms'",
        database.name()
    );
    owner.batch_execute(&patience).await?;
    for coupon in COUPONS {
        database.create_coupon(coupon, 1_000_000).await?;
    }
    let end = Instant::now() + Duration::from_secs(5);
    let mut sessions = JoinSet::new();
    for n in 0..8_u32 {
        let client = database.connect_as_caller().await?;
        sessions.spawn(async move {
            let (mut rng, mut calls) = (Rng::new(), 0);
            while Instant::now() < end {
                let mut coupons = [COUPONS, COUPONS].concat();
                rng.shuffle(&mut coupons);
                let users = (0..coupons.len()).map(|i| format!("u{n}_{calls}_{i}"));
                let users: Vec<String> = users.collect();
                let many = "select count(outcome) from honcho_claim_many($1, $2)";
                let claimed: i64 = client.query_one(many, &[&users, &coupons]).await?.get(0);
                ensure!(claimed == coupons.len() as i64, "{claimed}");
                let one = "select honcho_release($1, $2), honcho_claim($1, $2)";
                client.query_one(one, &[&users[0], &coupons[0]]).await?;
                calls += 1;
            }
            Ok(calls)
        });
    }
    let mut calls = 0;
    while let Some(session) = sessions.join_next().await {
        calls += session??;
    }
    ensure!(calls > 8, "{calls} calls");
    database.books().await
}

#[tokio::test]
async fn all_operations_together_never_deadlock() -> Result<()> {
    let seconds = env::var("HONCHO_TEST_SECONDS").ok();
    let seconds = seconds.map_or(Ok(SECONDS), |seconds| seconds.parse())?;
    let database = crate::database().await?;
    let owner = database.connect().await?;
    // The detector looks at each wait that takes longer.
    let patience = format!(
        "alter database {} set deadlock_timeout = '10ms'",
        database.name()
    );
    owner.batch_execute(&patience).await?;
    let end = Instant::now() + Duration::from_secs(seconds);
    let seed = fastrand::u64(..u64::MAX / 2);
    let mut sessions = JoinSet::new();
    for n in 0..12 {
        let client = database.connect_as_caller().await?;
        sessions.spawn(session(client, Rng::with_seed(seed + n), end));
    }
    let mut outcomes: BTreeMap<String, usize> = BTreeMap::new();
    while let Some(session) = sessions.join_next().await {
        for (outcome, count) in session?? {
            *outcomes.entry(outcome).or_default() += count;
        }
    }
    // All of it was under way.
    for outcome in [
        "claimed",
        "already_claimed",
        "all_held",
        "held",
        "not_held",
        "cancelled",
        "released",
        "not_claimed",
        "updated",
        "below_given",
        "deleted",
        "in_use",
        "paused",
        "not_found",
    ] {
        ensure!(outcomes.contains_key(outcome), "no {outcome}: {outcomes:?}");
    }
    // Holds expired as well, the last of them now.
    let last = "select honcho_create_coupon('LAST', 1), honcho_reserve('last', 'LAST', '1 second')";
    owner.query_one(last, &[]).await?;
    eventually("a hold to expire", async || {
        let expired: i32 = owner.query_one("select honcho_expire()", &[]).await?.get(0);
        Ok((expired > 0).then_some(()))
    })
    .await?;
    database.books().await
}

/// Counts the outcomes of transactions until the end.
async fn session(client: Client, mut rng: Rng, end: Instant) -> Result<BTreeMap<String, usize>> {
    let mut outcomes = BTreeMap::new();
    while Instant::now() < end {
        let sql = transaction(&mut rng);
        let messages = match client.simple_query(&sql).await {
            Ok(messages) => messages,
            Err(error) => bail!("{:?} in {sql}", error.as_db_error()),
        };
        for message in messages {
            if let SimpleQueryMessage::Row(row) = message {
                // An outcome, or a row that begins with it or with an ordinal.
                let text = row.get(0).unwrap_or_default().trim_start_matches('(');
                let mut words = text.split([',', ')']);
                let outcome = words.find(|word| word.parse::<i64>().is_err());
                *outcomes
                    .entry(outcome.unwrap_or_default().to_owned())
                    .or_default() += 1;
            }
        }
    }
    Ok(outcomes)
}
