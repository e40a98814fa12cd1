//! Operations of all kinds in one call: `honcho_apply`.

use pgrx::datum::{Interval, TimestampWithTimeZone};
use pgrx::prelude::*;

use crate::api::args;
use crate::api::outcome::{self, SqlOutcome};
use crate::api::reading::moment;
use crate::claiming::decision;
use crate::claiming::operation::{Action, Operation};
use crate::pg::rows::TableIterator;
use crate::pg::schema::Schema;
use crate::pg::session::Command;

/// Carries out operations on one coupon, one after the other, in the caller's own transaction: one wait in the
/// queue, one commit.
///
/// # Arguments
/// `coupon_name`: 1 to 255 characters. `operations`: at most 10,000 of `claim`, `reserve`, `confirm`, `cancel`
/// and `release`. The other arrays have as many elements, or are null: `user_ids`, of 1 to 255 characters each,
/// never null; `ttls`, of reservations, as `honcho_reserve` takes them; `request_keys`, of claims and
/// reservations; `actors`, labels for the events of the operations in place of `honcho.actor`, 1 to 255
/// characters.
///
/// # Returns
/// One row per operation, in order: its ordinal from 1; the outcome as the function of that operation gives it;
/// `expires_at` as `honcho_reserve` gives it, also for a claim that is refused with `all_held`; `replayed`, true
/// if the claim was made by an earlier request with the same key.
///
/// # Errors and locks
/// Those of `honcho_claim`. The error about a bad element gives its position, and nothing is written.
#[pg_extern(volatile, parallel_unsafe, security_definer)]
#[search_path(pg_catalog, pg_temp)]
#[allow(clippy::type_complexity, clippy::too_many_arguments)]
fn honcho_apply(
    coupon_name: Option<&str>,
    operations: Option<Array<'_, &str>>,
    user_ids: Option<Array<'_, &str>>,
    ttls: default!(Option<Array<'_, Interval>>, "null"),
    request_keys: default!(Option<Array<'_, &str>>, "null"),
    actors: default!(Option<Array<'_, &str>>, "null"),
    fcinfo: pg_sys::FunctionCallInfo,
) -> TableIterator<
    'static,
    (
        name!(ordinal, i32),
        name!(outcome, SqlOutcome),
        name!(expires_at, Option<TimestampWithTimeZone>),
        name!(replayed, bool),
    ),
> {
    let command = Command {
        name: c"honcho_apply()",
        doing: c"while changing",
    };
    // First, because it checks the encoding: the elements of an array are not checked to be valid strings.
    let schema = Schema::of_call(fcinfo);
    let coupon_name = args::text("coupon_name", coupon_name);
    let actions = args::texts("operations", operations.as_ref());
    let count = actions.len();
    let user_ids = args::texts("user_ids", user_ids.as_ref());
    args::length("user_ids", user_ids.len(), count);
    let ttls: Vec<Option<Interval>> = match ttls {
        Some(ttls) => {
            args::length("ttls", ttls.len(), count);
            ttls.iter().collect()
        }
        None => vec![None; count],
    };
    let request_keys = args::optional_texts("request_keys", request_keys.as_ref(), count);
    let actors = args::optional_texts("actors", actors.as_ref(), count);
    let operations: Vec<_> = (0..count)
        .map(|i| {
            let ttl = || args::ttl(&format!("ttls[{}]", i + 1), ttls[i]);
            let action = Action::from_label(actions[i], ttl).unwrap_or_else(|| {
                args::invalid(format!(
                    "operations[{}] must be claim, reserve, confirm, cancel or release, not {}",
                    i + 1,
                    actions[i]
                ))
            });
            Operation {
                request_key: request_keys[i],
                actor: actors[i],
                ..Operation::new(action, user_ids[i])
            }
        })
        .collect();
    let answers = decision::operate(schema, command, coupon_name, &operations);
    let outcomes = outcome::to_sql(answers.clone().into_iter().map(|it| it.outcome), schema);
    let rows = outcomes.zip(answers).enumerate();
    TableIterator::new(rows.map(|(i, (outcome, answer))| {
        let expires_at = answer.expires_at.and_then(moment);
        (i as i32 + 1, outcome, expires_at, answer.replayed)
    }))
}
