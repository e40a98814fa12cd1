//! Runs each case on the clusters and services that it needs.

use std::{ops::RangeInclusive, path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    before::Build,
    case::{
        Case, Figures, Flush, HELD, HELD_CLIENTS, NOON_STOCK, OPERATION_CLIENTS, Scene, Subject,
        WATCHERS,
    },
    clients::{self, Refused},
    ground::{Books, Ground, Stock},
    growth::{Grown, USERS},
    load::{self, Claimant, Http, Operations},
    machine,
    redis::{self, Redis},
    rush::rush,
    units,
    watchers::Watchers,
};

/// Measurements for which claims go on under a snapshot, between the two that are reported.
const MEANWHILE: u32 = 10;
/// Number of users in the already-claimed case.
const REGULARS: u32 = 10_000;
const COUPONS: u32 = 1_000;
/// The beginning of the names of users whose claims a trigger refuses.
const REFUSED_USER: &str = "refused";
/// Holds that are made for each second of confirmations: more than can be confirmed.
const SQL_HOLDS: u32 = 100_000;
const HTTP_HOLDS: u32 = 150_000;

/// The clusters, services and servers of the cases; each part starts when a case first needs it.
pub struct Stage {
    pub directory: PathBuf,
    seconds: u32,
    build: Option<Build>,
    before: Option<Ground>,
    disk: Option<Ground>,
    slow: Option<Ground>,
    grown: Option<Grown>,
    always: Option<Redis>,
    everysec: Option<Redis>,
    /// Refusals whose statuses were counted one by one.
    audited: Vec<Case>,
}

impl Stage {
    pub fn new(directory: PathBuf, seconds: u32, build: Option<Build>) -> Self {
        Self {
            directory,
            seconds,
            build,
            before: None,
            disk: None,
            slow: None,
            grown: None,
            always: None,
            everysec: None,
            audited: Vec::new(),
        }
    }

    /// Runs one case and checks the books after it.
    pub async fn measure(&mut self, case: Case) -> Result<Figures> {
        // What other cases have written must not go to the disk during this one.
        rustix::fs::sync();
        match (case.scene, case.subject) {
            (_, Subject::RedisAlways | Subject::RedisEverysec) => self.redis(case).await,
            (_, Subject::Units) => {
                let seconds = self.seconds;
                units::claims(self.ground(case).await?, case.clients, seconds).await
            }
            (Scene::Sql | Scene::Driver | Scene::Batch(_), _) => self.sql(case).await,
            (Scene::SqlReserve | Scene::SqlConfirm, _) => self.sql_holds(case).await,
            (Scene::SqlSoldOut | Scene::SqlAllHeld, _) => self.sql_refusals(case).await,
            (Scene::SqlSnapshot, _) => self.sql_snapshot(case).await,
            (
                Scene::Http | Scene::HttpSoldOut | Scene::HttpAlready | Scene::HttpCoupons,
                Subject::NoOp,
            ) => self.no_op(case).await,
            (Scene::Http | Scene::HttpCoupons | Scene::HttpCouponHeld | Scene::HttpWatched, _) => {
                self.http_claims(case).await
            }
            (Scene::HttpOneRefused, _) => {
                let books = self.ground(case).await?.books(case.subject).await?;
                books.refuse_users(REFUSED_USER).await?;
                let measured = self.http_claims(case).await;
                // Also after a failure: other cases use the same tables.
                books.refuse_no_users().await?;
                measured
            }
            (Scene::HttpReserve | Scene::HttpConfirm | Scene::HttpMixed, _) => {
                self.http_operations(case).await
            }
            (Scene::HttpSoldOut | Scene::HttpAlready, _) => self.http_refusals(case).await,
            (Scene::HttpNoon, Subject::NoOp) => self.no_op_noon(case).await,
            (Scene::HttpNoon, _) => self.http_noon(case).await,
            (Scene::GrownNew(rows), _) => self.grown_claims(case, rows, false).await,
            (Scene::GrownOld(rows), _) => self.grown_claims(case, rows, true).await,
            (Scene::GrownGet(rows), _) => {
                let seconds = self.seconds;
                self.grown()
                    .await?
                    .get_small(rows, case.clients, seconds)
                    .await
            }
            (Scene::GetMillion, _) => self.grown().await?.get_million().await,
            (Scene::Memory, _) => self.memory(case).await,
        }
    }

    async fn sql(&mut self, case: Case) -> Result<Figures> {
        let seconds = self.seconds;
        let ground = self.ground(case).await?;
        let books = ground.books(case.subject).await?;
        let coupon = ground.next_name();
        books
            .start_over(&[(coupon.clone(), Stock::Endless)])
            .await?;
        let url = ground.url(case.subject)?;
        let tally = match case.scene {
            Scene::Sql => {
                let script = load::script(case.scene, case.subject)?;
                load::pgbench(
                    ground.cluster(),
                    &url,
                    script,
                    &[("coupon", &coupon)],
                    case.clients,
                    seconds,
                )
                .await?
            }
            Scene::Batch(users) => {
                load::drive(&url, Claimant::Batch(users), &coupon, 1, seconds).await?
            }
            _ => {
                let claimant = match case.subject {
                    Subject::Honcho => Claimant::Honcho,
                    _ => Claimant::Prior,
                };
                load::drive(&url, claimant, &coupon, case.clients, seconds).await?
            }
        };
        books.ensure(tally.done(), 0..=0).await?;
        Ok(tally.figures)
    }

    async fn sql_holds(&mut self, case: Case) -> Result<Figures> {
        let seconds = self.seconds;
        let ground = self.ground(case).await?;
        let books = ground.books(case.subject).await?;
        let coupon = ground.next_name();
        books
            .start_over(&[(coupon.clone(), Stock::Endless)])
            .await?;
        let holders = match case.scene {
            Scene::SqlConfirm => SQL_HOLDS * (load::warm_up(case.clients) + seconds),
            _ => 0,
        };
        let (step, users) = pgbench_users(holders);
        books.reserve_beforehand(&coupon, &users).await?;
        let variables = [
            ("coupon", coupon.as_str()),
            ("serial", "0"),
            ("clients", &case.clients.to_string()),
            ("holders", &holders.to_string()),
            ("step", &step.to_string()),
        ];
        let tally = load::pgbench(
            ground.cluster(),
            &ground.url(case.subject)?,
            load::script(case.scene, case.subject)?,
            &variables,
            case.clients,
            seconds,
        )
        .await?;
        match case.scene {
            Scene::SqlConfirm => books.ensure_confirmed(tally.done(), holders.into()).await?,
            _ => books.ensure(0..=0, tally.done()).await?,
        }
        Ok(tally.figures)
    }

    async fn sql_refusals(&mut self, case: Case) -> Result<Figures> {
        let seconds = self.seconds;
        let ground = self.ground(case).await?;
        let books = ground.books(case.subject).await?;
        let coupon = ground.next_name();
        let (outcome, claims, holds) = match case.scene {
            Scene::SqlAllHeld => ("all_held", 0, HELD),
            _ => ("sold_out", HELD, 0),
        };
        let stock = Stock::Pieces(i32::try_from(claims + holds)?);
        books.start_over(&[(coupon.clone(), stock)]).await?;
        books.claim_beforehand(&coupon, claims).await?;
        books
            .reserve_beforehand(&coupon, &pgbench_users(holds).1)
            .await?;
        books.ensure_refused(&coupon, outcome).await?;
        let tally = load::pgbench(
            ground.cluster(),
            &ground.url(case.subject)?,
            load::script(case.scene, case.subject)?,
            &[("coupon", &coupon)],
            case.clients,
            seconds,
        )
        .await?;
        books.ensure_refused(&coupon, outcome).await?;
        let (claims, holds) = (claims.into(), holds.into());
        books.ensure(claims..=claims, holds..=holds).await?;
        Ok(tally.figures)
    }

    async fn sql_snapshot(&mut self, case: Case) -> Result<Figures> {
        let seconds = self.seconds;
        let ground = self.ground(case).await?;
        let books = ground.books(case.subject).await?;
        let coupon = ground.next_name();
        books
            .start_over(&[(coupon.clone(), Stock::Endless)])
            .await?;
        let url = ground.url(case.subject)?;
        let variables = [("coupon", coupon.as_str())];
        let claim = load::script(case.scene, case.subject)?;
        let run = async |script: &str, clients: u32, seconds: u32| {
            load::pgbench(ground.cluster(), &url, script, &variables, clients, seconds).await
        };
        let snapshot = ground.books(case.subject).await?;
        snapshot.keep_snapshot().await?;
        let first = run(claim, case.clients, seconds).await?;
        let first_gets = run(load::GET_COUPON, 1, seconds).await?;
        let meanwhile = run(claim, case.clients, MEANWHILE * seconds).await?;
        let last = run(claim, case.clients, seconds).await?;
        let last_gets = run(load::GET_COUPON, 1, seconds).await?;
        snapshot.ensure_snapshot().await?;
        snapshot.roll_back().await?;
        let claims = first.claims + meanwhile.claims + last.claims;
        books.ensure(claims..=claims, 0..=0).await?;
        Ok(Figures::Snapshot {
            claims: (first.per_second()?, last.per_second()?),
            gets: (first_gets.per_second()?, last_gets.per_second()?),
            meanwhile: meanwhile.claims,
        })
    }

    async fn http_operations(&mut self, case: Case) -> Result<Figures> {
        let seconds = self.seconds;
        let ground = self.ground(case).await?;
        let books = ground.books(case.subject).await?;
        let coupon = ground.next_name();
        books
            .start_over(&[(coupon.clone(), Stock::Endless)])
            .await?;
        let (operations, holders) = match case.scene {
            Scene::HttpConfirm => (
                Operations::Confirm,
                load::wrk_users(case.clients, HTTP_HOLDS * seconds)?,
            ),
            Scene::HttpReserve => (Operations::Reserve, Vec::new()),
            _ => (Operations::Mixed, Vec::new()),
        };
        books.reserve_beforehand(&coupon, &holders).await?;
        let url = ground.service(case.subject).await?.url("/");
        let tally = load::wrk_operations(&url, operations, &coupon, case.clients, seconds).await?;
        // In a mixture, an operation may overtake the one that it follows.
        let tolerated = match operations {
            Operations::Mixed => tally.answers / 100,
            Operations::Reserve | Operations::Confirm => 0,
        };
        ensure!(
            tally.refused <= tolerated,
            "{} of {} answers were refusals",
            tally.refused,
            tally.answers
        );
        match operations {
            Operations::Reserve => books.ensure(0..=0, tally.done()).await?,
            Operations::Confirm => {
                let holders = u64::try_from(holders.len())?;
                books.ensure_confirmed(tally.done(), holders).await?;
            }
            Operations::Mixed => {
                let amiss = tally.refused + tally.in_flight;
                let about = |sought: u64| sought.saturating_sub(amiss)..=sought + amiss;
                let (claims, holds) = tally.sought;
                books.ensure(about(claims), about(holds)).await?;
            }
        }
        Ok(tally.figures)
    }

    async fn http_claims(&mut self, case: Case) -> Result<Figures> {
        let seconds = self.seconds;
        let ground = self.ground(case).await?;
        let books = ground.books(case.subject).await?;
        let coupon = ground.next_name();
        let coupons = match case.scene {
            Scene::HttpCoupons | Scene::HttpCouponHeld => COUPONS,
            _ => 0,
        };
        let names = match coupons {
            0 => vec![(coupon.clone(), Stock::Endless)],
            // The names that the wrk script generates. If one is held, it is the last.
            _ => (0..coupons)
                .map(|number| (format!("{coupon}_{}", 1000 + number), Stock::Endless))
                .collect(),
        };
        books.start_over(&names).await?;
        let service = ground.service(case.subject).await?;
        let url = service.url("/api/coupons/claim");
        let watchers = match case.scene {
            Scene::HttpWatched => Some(Watchers::open(service.address(), &coupon, WATCHERS).await?),
            _ => None,
        };
        let address = service.address();
        let (last, _) = names.last().context("no coupons")?;
        let (holder, refused) = match case.scene {
            Scene::HttpCouponHeld => {
                let holder = ground.books(case.subject).await?;
                holder.claim_and_keep_open(last).await?;
                let refused = Refused::start(address, last, "late", HELD_CLIENTS, 503).await?;
                (Some(holder), Some(refused))
            }
            Scene::HttpOneRefused => {
                let refused = Refused::start(address, last, REFUSED_USER, 1, 500).await?;
                (None, Some(refused))
            }
            _ => (None, None),
        };
        let http = Http {
            coupon: &coupon,
            tag: "u",
            users: 0,
            coupons: coupons - u32::from(holder.is_some()),
            audit: None,
        };
        let tally = load::wrk(&url, &http, case.clients, seconds).await?;
        if let Some(refused) = refused {
            refused.finish().await?;
        }
        if let Some(holder) = holder {
            holder.roll_back().await?;
        }
        if let Some(watchers) = watchers {
            books.restock(&coupon).await?;
            watchers.finish().await?;
        }
        ensure!(
            tally.refused == 0,
            "{} of {} answers were refusals",
            tally.refused,
            tally.answers
        );
        books.ensure(tally.done(), 0..=0).await?;
        Ok(tally.figures)
    }

    async fn http_refusals(&mut self, case: Case) -> Result<Figures> {
        let seconds = self.seconds;
        let audit = !self.audited.contains(&case);
        let ground = self.ground(case).await?;
        let books = ground.books(case.subject).await?;
        let coupon = ground.next_name();
        let (stock, users) = match case.scene {
            Scene::HttpSoldOut => (Stock::Pieces(1), 0),
            _ => (Stock::Endless, REGULARS),
        };
        books.start_over(&[(coupon.clone(), stock)]).await?;
        books.claim_beforehand(&coupon, users.max(1)).await?;
        let before = books.claims().await?;
        let url = ground
            .service(case.subject)
            .await?
            .url("/api/coupons/claim");
        let tag = if users == 0 { "new" } else { "old" };
        let mut http = Http {
            coupon: &coupon,
            tag,
            users,
            coupons: 0,
            audit: None,
        };
        if audit {
            http.audit = Some(409);
            let tally = load::wrk(&url, &http, case.clients, 1).await?;
            ensure!(
                tally.unwanted == 0,
                "{} answers were not 409",
                tally.unwanted
            );
            ensure!(tally.wanted > 0, "no answers");
            http.audit = None;
        }
        let tally = load::wrk(&url, &http, case.clients, seconds).await?;
        ensure!(
            tally.refused == tally.answers,
            "{} of {} answers were no refusals",
            tally.answers - tally.refused,
            tally.answers
        );
        books.ensure(before..=before, 0..=0).await?;
        self.audited.push(case);
        Ok(tally.figures)
    }

    async fn http_noon(&mut self, case: Case) -> Result<Figures> {
        machine::ensure_files(clients::files(case.clients))?;
        let ground = self.ground(case).await?;
        let books = ground.books(case.subject).await?;
        let (earlier, coupon) = (ground.next_name(), ground.next_name());
        let stock = Stock::Pieces(i32::try_from(NOON_STOCK)?);
        books
            .start_over(&[(earlier.clone(), Stock::Endless), (coupon.clone(), stock)])
            .await?;
        let address = ground.service(case.subject).await?.address();
        // The service opens its connections to the database.
        let first = rush(address, &earlier, OPERATION_CLIENTS).await?;
        let noon = rush(address, &coupon, case.clients).await?;
        for (answers, clients, stock) in [
            (&first, OPERATION_CLIENTS, OPERATION_CLIENTS),
            (&noon, case.clients, NOON_STOCK),
        ] {
            ensure!(
                (answers.claimed, answers.refused) == (stock.into(), (clients - stock).into()),
                "of {clients} claims on {stock} pieces, {} were answered 200 and {} were answered 409",
                answers.claimed,
                answers.refused
            );
        }
        let claims = u64::from(OPERATION_CLIENTS + NOON_STOCK);
        books.ensure(claims..=claims, 0..=0).await?;
        Ok(noon.figures)
    }

    async fn no_op_noon(&mut self, case: Case) -> Result<Figures> {
        machine::ensure_files(clients::files(case.clients))?;
        let ground = self.ground(case).await?;
        let coupon = ground.next_name();
        let address = ground.service(case.subject).await?.address();
        rush(address, &coupon, OPERATION_CLIENTS).await?;
        let noon = rush(address, &coupon, case.clients).await?;
        ensure!(
            noon.claimed == u64::from(case.clients),
            "of {} requests, {} were answered 200",
            case.clients,
            noon.claimed
        );
        Ok(noon.figures)
    }

    async fn no_op(&mut self, case: Case) -> Result<Figures> {
        let seconds = self.seconds;
        let ground = self.ground(case).await?;
        let coupon = ground.next_name();
        let url = ground
            .service(case.subject)
            .await?
            .url("/api/coupons/claim");
        let http = Http {
            coupon: &coupon,
            tag: "u",
            users: 0,
            coupons: 0,
            audit: None,
        };
        let tally = load::wrk(&url, &http, case.clients, seconds).await?;
        ensure!(
            tally.refused == 0,
            "{} of {} answers were refusals",
            tally.refused,
            tally.answers
        );
        Ok(tally.figures)
    }

    async fn memory(&mut self, case: Case) -> Result<Figures> {
        let seconds = self.seconds;
        let ground = self.ground(case).await?;
        let books = ground.books(case.subject).await?;
        let coupon = ground.next_name();
        books
            .start_over(&[(coupon.clone(), Stock::Endless)])
            .await?;
        // A separate service, so that earlier cases do not count.
        let service = honcho_tests::Service::start(&ground.url(case.subject)?).await?;
        service.leave_log_unread();
        let url = service.url("/api/coupons/claim");
        let http = Http {
            coupon: &coupon,
            tag: "m",
            users: 0,
            coupons: 0,
            audit: None,
        };
        let first = load::get(service.address(), &format!("/api/coupons/{coupon}")).await?;
        ensure!(first.status == 200, "GET of the coupon: {}", first.status);
        let idle = service.resident_bytes()?;
        let tally = load::wrk(&url, &http, case.clients, seconds).await?;
        ensure!(
            tally.refused == 0,
            "{} of {} answers were refusals",
            tally.refused,
            tally.answers
        );
        let loaded = service.peak_resident_bytes()?;
        books.ensure(tally.done(), 0..=0).await?;
        Ok(Figures::Memory { idle, loaded })
    }

    async fn grown_claims(&mut self, case: Case, rows: u64, old: bool) -> Result<Figures> {
        let seconds = self.seconds;
        let script = load::script(case.scene, case.subject)?;
        let grown = self.grown().await?;
        grown
            .claims(case.subject, script, rows, old, case.clients, seconds)
            .await
    }

    async fn redis(&mut self, case: Case) -> Result<Figures> {
        let (server, policy) = match case.subject {
            Subject::RedisAlways => (&mut self.always, redis::Append::Always),
            _ => (&mut self.everysec, redis::Append::Everysec),
        };
        if server.is_none() {
            *server = Some(Redis::start(&self.directory, policy).await?);
        }
        let server = server.as_mut().context("no Redis")?;
        match case.scene {
            Scene::Http => server.http_claims(case.clients, self.seconds).await,
            _ => server.claims(case.clients, self.seconds).await,
        }
    }

    async fn ground(&mut self, case: Case) -> Result<&mut Ground> {
        if case.subject == Subject::Before {
            if self.before.is_none() {
                let build = self.build.clone();
                self.before = Some(Ground::start(&self.directory, None, build).await?);
            }
            return self.before.as_mut().context("no cluster");
        }
        // The first commit on the slow disk, compared with one on the other.
        if self.disk.is_none() {
            self.disk = Some(Ground::start(&self.directory, None, None).await?);
        }
        let disk = self.disk.as_mut().context("no cluster")?;
        match case.flush {
            Flush::Disk => Ok(disk),
            Flush::Slow => {
                if self.slow.is_none() {
                    self.slow = Some(Ground::start(&self.directory, Some(disk), None).await?);
                }
                self.slow.as_mut().context("no cluster")
            }
        }
    }

    async fn grown(&mut self) -> Result<&mut Grown> {
        if self.grown.is_none() {
            eprintln!("Filling tables with up to 10 million claims: a minute or two");
            self.grown = Some(Grown::start(&self.directory).await?);
        }
        self.grown.as_mut().context("no cluster")
    }

    /// Names and values of the clusters' relevant settings.
    pub async fn settings(&self) -> Result<Vec<(String, String)>> {
        match &self.disk {
            Some(ground) => ground.settings().await,
            None => Ok(Vec::new()),
        }
    }

    /// Duration of a commit on the disk, and with the delay.
    pub fn flush_times(&self) -> Vec<(Flush, Duration, Duration)> {
        let times = |flush, ground: &Ground| (flush, ground.flush_time(), ground.commit_time());
        let disk = self.disk.iter().map(|ground| times(Flush::Disk, ground));
        disk.chain(self.slow.iter().map(|ground| times(Flush::Slow, ground)))
            .collect()
    }
}

impl Books {
    /// Fails unless the books are right and have as many claims and holds as the answers say: any number of these,
    /// because requests were in flight when the load generator stopped.
    async fn ensure(&self, claims: RangeInclusive<u64>, holds: RangeInclusive<u64>) -> Result<()> {
        self.settle().await?;
        self.check(None).await?;
        for (what, found, answered) in [
            ("claims", self.claims().await?, claims),
            ("holds", self.holds().await?, holds),
        ] {
            if !answered.contains(&found) {
                let (least, most) = answered.into_inner();
                bail!("{found} {what} on the books, but {least} to {most} answered");
            }
        }
        Ok(())
    }

    /// The same after so many confirmations of so many holds.
    async fn ensure_confirmed(&self, confirmed: RangeInclusive<u64>, of: u64) -> Result<()> {
        let left = of.saturating_sub(*confirmed.end())..=of.saturating_sub(*confirmed.start());
        self.ensure(confirmed, left).await
    }
}

/// The users of the holds that pgbench confirms, with the step from one to the next: spread over the same range
/// as those of claims.
fn pgbench_users(count: u32) -> (i64, Vec<String>) {
    let step = (USERS.1 - USERS.0) / i64::from(count.max(1));
    let user = |number| (USERS.0 + i64::from(number) * step).to_string();
    (step, (0..count).map(user).collect())
}
