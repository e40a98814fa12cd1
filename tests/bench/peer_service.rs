//! The prior system's claim over HTTP on axum and a pool, and the route that only parses it.

use std::sync::Arc;

use anyhow::{Result, ensure};
use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::post,
};
use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod};
use rustix::process::{Signal, set_parent_process_death_signal};
use serde::{Deserialize, Serialize};
use tokio::net::TcpSocket;
use tokio_postgres::{NoTls, error::SqlState};

/// The statements between begin and commit.
pub const SELECT: &str = "select id, name, amount, remaining_amount, created_at
                            from coupons where name = $1 for update";
pub const INSERT: &str = "insert into claims (user_id, coupon_name) values ($1, $2)";
pub const UPDATE: &str =
    "update coupons set remaining_amount = remaining_amount - 1 where name = $1";

#[derive(Deserialize)]
struct Claim {
    user_id: String,
    coupon_name: String,
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

/// Serves claims until it is killed: on a pool of this size, or without a pool, with 200 for every claim that
/// can be parsed.
pub async fn serve(pool: Option<(usize, String)>) -> Result<()> {
    // Ends even if the benchmark is killed and cannot end it.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let app = match pool {
        Some((size, url)) => {
            ensure!(size > 0, "a pool of no connections");
            let method = RecyclingMethod::Fast;
            let manager = Manager::from_config(
                url.parse()?,
                NoTls,
                ManagerConfig {
                    recycling_method: method,
                },
            );
            let pool = Pool::builder(manager).max_size(size).build()?;
            Router::new()
                .route("/api/coupons/claim", post(claim))
                .with_state(Arc::new(pool))
        }
        None => Router::new().route("/api/coupons/claim", post(no_op)),
    };
    // With a queue as long as the system allows, as the service does.
    let socket = TcpSocket::new_v4()?;
    socket.bind(([127, 0, 0, 1], 0).into())?;
    let listener = socket.listen(i32::MAX.unsigned_abs())?;
    eprintln!("listening on http://{}", listener.local_addr()?);
    Ok(axum::serve(listener, app).await?)
}

async fn no_op(Json(claim): Json<Claim>) -> Response {
    claimed(claim)
}

async fn claim(State(pool): State<Arc<Pool>>, Json(claim): Json<Claim>) -> Response {
    match prior_transaction(&pool, &claim).await {
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

enum Outcome {
    Claimed,
    AlreadyClaimed,
    SoldOut,
    NotFound,
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
