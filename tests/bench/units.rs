//! The peer with a row for each unit of a coupon: its stock, its claims and its books.

use anyhow::{Result, ensure};
use honcho_tests::connect;
use tokio_postgres::Client;

use crate::{
    case::{Figures, Scene, Subject},
    ground::Ground,
    load,
};

/// Tables, and the claim as one PL/pgSQL function.
pub const TABLES: &str = include_str!("units.sql");

/// Units that are made for each second of claims: more than can be claimed.
const PER_SECOND: u32 = 50_000;

/// Single claims on one coupon through pgbench. If its units ran out, there would be fewer claims on the books than
/// transactions, and the case would fail.
pub async fn claims(ground: &mut Ground, clients: u32, seconds: u32) -> Result<Figures> {
    let coupon = ground.next_name();
    let url = ground.url(Subject::Units)?;
    let books = Books(connect(&url).await?);
    let units = PER_SECOND * (load::warm_up(clients) + seconds);
    books.start_over(&coupon, units).await?;
    let tally = load::pgbench(
        ground.cluster(),
        &url,
        load::script(Scene::Sql, Subject::Units)?,
        &[("coupon", &coupon)],
        clients,
        seconds,
    )
    .await?;
    books.check(units, tally.claims).await?;
    Ok(tally.figures)
}

struct Books(Client);

impl Books {
    /// Empties the tables, and makes a coupon of this many units and a checkpoint.
    async fn start_over(&self, coupon: &str, units: u32) -> Result<()> {
        let Self(client) = self;
        client
            .batch_execute("truncate coupons, units, claims")
            .await?;
        let create = "with coupon as (
                 insert into coupons (name, amount) values ($1, $2) returning id, amount
             )
             insert into units (coupon_id, number)
             select id, number from coupon, generate_series(1, amount) number";
        let units = i32::try_from(units)?;
        client.execute(create, &[&coupon, &units]).await?;
        // Else autovacuum would do it during the measurement.
        client
            .batch_execute("vacuum (analyze) coupons, units")
            .await?;
        client.batch_execute("checkpoint").await?;
        Ok(())
    }

    /// Fails unless each of so many units is either left or claimed, and this many are claimed.
    async fn check(&self, units: u32, claims: u64) -> Result<()> {
        let count = "select count(*) filter (where claim.unit is null),
                            count(*) filter (where unit.number is null),
                            count(*)
                       from units unit
                       full join claims claim
                         on (claim.coupon_id, claim.unit) = (unit.coupon_id, unit.number)";
        let row = self.0.query_one(count, &[]).await?;
        let (left, claimed, all): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
        let both = all - left - claimed;
        ensure!(
            [claimed, left + claimed, both] == [i64::try_from(claims)?, units.into(), 0],
            "{claims} claims answered, but of {units} units {left} are left, {claimed} claimed, {both} both"
        );
        Ok(())
    }
}
