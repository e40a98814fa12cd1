//! Tables with many claims.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use honcho_tests::{Cluster, Database, Service, connect};
use serde::Deserialize;

use crate::{
    case::{Figures, GROWN, Subject},
    ground::{Books, ENDLESS, Stock, cluster_options, create_prior},
    load,
};

/// The coupon of the small GETs, and the number of its claims.
const SMALL: &str = "SMALL";
const SMALL_CLAIMS: u64 = 1_000;
/// Coupons with the rest of the claims are called this and a number; each has a million at most.
const OLD: &str = "OLD";
const OLD_CLAIMS: u64 = 1_000_000;

/// Users are numbers of 19 digits over the same range as in the pgbench scripts, so that later claims fall
/// between the existing ones.
pub const USERS: (i64, i64) = (1_000_000_000_000_000_000, 9_000_000_000_000_000_000);

/// One size of both systems' tables.
struct Size {
    rows: u64,
    honcho: Result<Database, String>,
    prior_url: String,
}

/// A cluster with databases of every size.
pub struct Grown {
    cluster: Cluster,
    sizes: Vec<Size>,
    serial: u32,
}

/// The answer to a GET.
#[derive(Deserialize)]
struct Coupon {
    amount: i64,
    remaining_amount: i64,
    claimed_by: Vec<String>,
}

impl Grown {
    pub async fn start(directory: &Path) -> Result<Self> {
        let cluster = cluster_options(directory).start()?;
        let mut sizes = Vec::new();
        for rows in GROWN {
            let honcho = Database::create(&cluster)
                .await
                .map_err(|error| format!("no extension to measure: {error:#}"));
            let prior_url = create_prior(&cluster, &format!("prior_{rows}")).await?;
            let size = Size {
                rows,
                honcho,
                prior_url,
            };
            let (honcho, prior) = tokio::join!(
                async {
                    match &size.honcho {
                        Ok(database) => fill(&Books::honcho(database.connect().await?), rows).await,
                        Err(_) => Ok(()),
                    }
                },
                async { fill(&Books::prior(connect(&size.prior_url).await?), rows).await },
            );
            honcho?;
            prior?;
            sizes.push(size);
        }
        Ok(Self {
            cluster,
            sizes,
            serial: 0,
        })
    }

    /// Single claims through pgbench on a new coupon, or on an old one with many claims.
    pub async fn claims(
        &mut self,
        subject: Subject,
        script: &str,
        rows: u64,
        old: bool,
        clients: u32,
        seconds: u32,
    ) -> Result<Figures> {
        self.serial += 1;
        let coupon = if old {
            format!("{OLD}_0")
        } else {
            format!("SALE_{:06}", self.serial)
        };
        let size = self.size(rows)?;
        let (books, url) = match subject {
            Subject::Honcho => {
                let database = size.honcho()?;
                (
                    Books::honcho(database.connect().await?),
                    database.caller_url(),
                )
            }
            _ => (
                Books::prior(connect(&size.prior_url).await?),
                size.prior_url.as_str(),
            ),
        };
        if rows == GROWN[0] {
            // Small enough to be doubled by one case.
            fill(&books, rows).await?;
        }
        if !old {
            books.create(&[(coupon.clone(), Stock::Endless)]).await?;
        }
        let before = books.claims_on(&coupon).await?;
        let tally = load::pgbench(
            &self.cluster,
            url,
            script,
            &[("coupon", &coupon)],
            clients,
            seconds,
        )
        .await?;
        books.settle().await?;
        books.check(Some(&coupon)).await?;
        let after = books.claims_on(&coupon).await?;
        ensure!(
            after - before == tally.claims,
            "{} claims on the books, but {} answered",
            after - before,
            tally.claims
        );
        Ok(tally.figures)
    }

    /// GETs of a coupon with few claims.
    pub async fn get_small(&mut self, rows: u64, clients: u32, seconds: u32) -> Result<Figures> {
        let database = self.size(rows)?.honcho()?;
        let service = Service::start(database.caller_url()).await?;
        service.leave_log_unread();
        let path = format!("/api/coupons/{SMALL}");
        let coupon = get_coupon(&service, &path).await?.1;
        ensure!(
            u64::try_from(coupon.claimed_by.len())? == SMALL_CLAIMS,
            "the GET lists {} claims",
            coupon.claimed_by.len()
        );
        let tally = load::wrk_get(&service.url(&path), clients, seconds).await?;
        ensure!(
            tally.refused == 0,
            "{} of {} answers were refusals",
            tally.refused,
            tally.answers
        );
        Ok(tally.figures)
    }

    /// One GET of a coupon with a million claims, by a service that has served only one small GET before.
    pub async fn get_million(&mut self) -> Result<Figures> {
        let database = self.size(GROWN[GROWN.len() - 1])?.honcho()?;
        let service = Service::start(database.caller_url()).await?;
        service.leave_log_unread();
        get_coupon(&service, &format!("/api/coupons/{SMALL}")).await?;
        let before = service.resident_bytes()?;
        let (answer, coupon) = get_coupon(&service, &format!("/api/coupons/{OLD}_1")).await?;
        let growth = service.peak_resident_bytes()?.saturating_sub(before);
        ensure!(
            u64::try_from(coupon.claimed_by.len())? == OLD_CLAIMS,
            "the GET lists {} claims",
            coupon.claimed_by.len()
        );
        Ok(Figures::Get {
            first_byte: answer.first_byte,
            took: answer.took,
            growth,
        })
    }

    fn size(&self, rows: u64) -> Result<&Size> {
        self.sizes
            .iter()
            .find(|size| size.rows == rows)
            .context("no such size")
    }
}

impl Size {
    fn honcho(&self) -> Result<&Database> {
        self.honcho
            .as_ref()
            .map_err(|error| anyhow::anyhow!("{error}"))
    }
}

/// GETs a coupon and reads the whole answer, whose claims and stock must agree.
async fn get_coupon(service: &Service, path: &str) -> Result<(load::Answer, Coupon)> {
    let answer = load::get(service.address(), path).await?;
    ensure!(answer.status == 200, "GET {path}: {}", answer.status);
    let coupon: Coupon = serde_json::from_slice(&answer.body)
        .with_context(|| format!("GET {path} gives no whole coupon"))?;
    ensure!(
        coupon.amount - coupon.remaining_amount == i64::try_from(coupon.claimed_by.len())?,
        "GET {path} lists {} claims and tells of {}",
        coupon.claimed_by.len(),
        coupon.amount - coupon.remaining_amount
    );
    Ok((answer, coupon))
}

/// Fills empty tables with this many claims, and vacuums and analyzes them as a day without sales would.
async fn fill(books: &Books, rows: u64) -> Result<()> {
    let client = books.client();
    books.empty().await?;
    // An index is built faster than it grows row by row. The foreign key holds by construction.
    let keys = client
        .query(
            "select format('alter table claims drop constraint %I', conname),
                    format('alter table claims add constraint %I %s', conname,
                           pg_get_constraintdef(oid))
               from pg_constraint where conrelid = 'claims'::regclass and contype in ('p', 'u')",
            &[],
        )
        .await?;
    for key in &keys {
        client.batch_execute(key.get(0)).await?;
    }
    client
        .batch_execute("set session_replication_role = replica")
        .await?;
    let mut left = rows;
    let mut put = async |name: &str, most: u64| -> Result<()> {
        let claims = i32::try_from(left.min(most))?;
        left -= left.min(most);
        client
            .execute(
                "insert into coupons (name, amount, remaining_amount)
                 values ($1, $2::int, $2::int - $3::int)",
                &[&name, &ENDLESS, &claims],
            )
            .await?;
        let step = (USERS.1 - USERS.0) / i64::from(claims.max(1));
        client
            .execute(
                "insert into claims (user_id, coupon_name)
                 select ($2::bigint + n * $3::bigint)::text, $1
                   from generate_series(0, $4::bigint - 1) n",
                &[&name, &USERS.0, &step, &i64::from(claims)],
            )
            .await?;
        Ok(())
    };
    put(SMALL, SMALL_CLAIMS).await?;
    for number in 0..=rows / OLD_CLAIMS {
        put(&format!("{OLD}_{number}"), OLD_CLAIMS).await?;
    }
    client
        .batch_execute("reset session_replication_role")
        .await?;
    client
        .batch_execute("set maintenance_work_mem = '512MB'")
        .await?;
    for key in &keys {
        client.batch_execute(key.get(1)).await?;
    }
    client
        .batch_execute("vacuum (freeze, analyze) coupons, claims")
        .await?;
    client.batch_execute("checkpoint").await?;
    books.check(None).await
}
