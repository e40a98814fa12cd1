//! Peers of the service on axum: the prior system's claim on a pool, the claim in Redis, and a route that only
//! parses the claim.

use std::{env, ffi::OsString, path::PathBuf, process::Command, sync::Arc};

use anyhow::{Result, ensure};
use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::post,
};
use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod};
use honcho_tests::Service;
use rustix::process::{Signal, set_parent_process_death_signal};
use serde::{Deserialize, Serialize};
use tokio::net::TcpSocket;
use tokio_postgres::{NoTls, error::SqlState};

use crate::redis_claims::RedisClaims;

/// The path of claims.
pub const PATH: &str = "/api/coupons/claim";

/// The statements between begin and commit.
pub const SELECT: &str = "select id, name, amount, remaining_amount, created_at
                            from coupons where name = $1 for update";
pub const INSERT: &str = "insert into claims (user_id, coupon_name) values ($1, $2)";
pub const UPDATE: &str =
    "update coupons set remaining_amount = remaining_amount - 1 where name = $1";

/// Places in which a peer keeps its claims.
#[derive(Clone, Debug)]
pub enum Store {
    /// None: every claim that can be parsed is answered 200.
    Nothing,
    /// A database of the prior system, through a pool.
    Pool { size: usize, database_url: String },
    /// Redis, through this socket.
    Redis(PathBuf),
}

impl Store {
    /// The arguments with which this program serves claims on it.
    fn arguments(&self) -> Vec<OsString> {
        match self {
            Self::Nothing => Vec::new(),
            Self::Pool { size, database_url } => vec![
                "--pool".into(),
                size.to_string().into(),
                "--database-url".into(),
                database_url.into(),
            ],
            Self::Redis(socket) => vec!["--redis".into(), socket.into()],
        }
    }
}

#[derive(Deserialize)]
pub struct Claim {
    pub user_id: String,
    pub coupon_name: String,
}

#[derive(Serialize)]
struct Claimed {
    message: &'static str,
    user_id: String,
    coupon_name: String,
}

#[derive(Serialize)]
struct Refused {
    error: &'static str,
}

/// Starts this program as a peer's service.
pub async fn start(store: &Store) -> Result<Service> {
    let mut command = Command::new(env::current_exe()?);
    command.arg("peer-service").args(store.arguments());
    Service::spawn(command).await
}

/// Serves claims until it is killed.
pub async fn serve(store: Store) -> Result<()> {
    // Ends even if the benchmark is killed and cannot end it.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let app = match store {
        Store::Nothing => Router::new().route(PATH, post(no_op)),
        Store::Pool { size, database_url } => Router::new()
            .route(PATH, post(claim_on_pool))
            .with_state(Arc::new(pool(size, &database_url)?)),
        Store::Redis(socket) => Router::new()
            .route(PATH, post(claim_in_redis))
            .with_state(RedisClaims::connect(&socket).await?),
    };
    // With a queue as long as the system allows, as the service does.
    let socket = TcpSocket::new_v4()?;
    socket.bind(([127, 0, 0, 1], 0).into())?;
    let listener = socket.listen(i32::MAX.unsigned_abs())?;
    eprintln!("listening on http://{}", listener.local_addr()?);
    Ok(axum::serve(listener, app).await?)
}

fn pool(size: usize, database_url: &str) -> Result<Pool> {
    ensure!(size > 0, "a pool of no connections");
    let manager = Manager::from_config(
        database_url.parse()?,
        NoTls,
        ManagerConfig {
            recycling_method: RecyclingMethod::Fast,
        },
    );
    Ok(Pool::builder(manager).max_size(size).build()?)
}

async fn no_op(Json(claim): Json<Claim>) -> Response {
    claimed(claim)
}

async fn claim_on_pool(State(pool): State<Arc<Pool>>, Json(claim): Json<Claim>) -> Response {
    answer(prior_transaction(&pool, &claim).await, claim)
}

async fn claim_in_redis(State(redis): State<RedisClaims>, Json(claim): Json<Claim>) -> Response {
    answer(redis.claim(&claim).await, claim)
}

pub enum Outcome {
    Claimed,
    AlreadyClaimed,
    SoldOut,
    NotFound,
}

fn answer(outcome: Result<Outcome>, claim: Claim) -> Response {
    match outcome {
        Ok(Outcome::Claimed) => claimed(claim),
        Ok(Outcome::NotFound) => refused(StatusCode::NOT_FOUND, "not_found"),
        Ok(Outcome::SoldOut) => refused(StatusCode::CONFLICT, "sold_out"),
        Ok(Outcome::AlreadyClaimed) => refused(StatusCode::CONFLICT, "already_claimed"),
        Err(error) => {
            eprintln!("{error:#}");
            refused(StatusCode::INTERNAL_SERVER_ERROR, "internal")
        }
    }
}

async fn prior_transaction(pool: &Pool, claim: &Claim) -> Result<Outcome> {
    let mut client = pool.get().await?;
    let select = client.prepare_cached(SELECT).await?;
    let insert = client.prepare_cached(INSERT).await?;
    let update = client.prepare_cached(UPDATE).await?;
    let transaction = client.transaction().await?;
    let outcome = match transaction
        .query_opt(&select, &[&claim.coupon_name])
        .await?
    {
        None => Outcome::NotFound,
        Some(row) if row.get::<_, i32>(3) <= 0 => Outcome::SoldOut,
        Some(_) => {
            match transaction
                .execute(&insert, &[&claim.user_id, &claim.coupon_name])
                .await
            {
                Ok(_) => {
                    transaction.execute(&update, &[&claim.coupon_name]).await?;
                    transaction.commit().await?;
                    return Ok(Outcome::Claimed);
                }
                Err(error) if error.code() == Some(&SqlState::UNIQUE_VIOLATION) => {
                    Outcome::AlreadyClaimed
                }
                Err(error) => return Err(error.into()),
            }
        }
    };
    transaction.rollback().await?;
    Ok(outcome)
}

fn claimed(claim: Claim) -> Response {
    let Claim {
        user_id,
        coupon_name,
    } = claim;
    Json(Claimed {
        message: "Coupon claimed",
        user_id,
        coupon_name,
    })
    .into_response()
}

fn refused(status: StatusCode, error: &'static str) -> Response {
    (status, Json(Refused { error })).into_response()
}
