//! Creating a coupon: its event, and the refusal if its name is taken.

use serde_json::json;

use crate::claiming::durability;
use crate::claiming::store::events::{self, Event};
use crate::claiming::store::{Tables, View};
use crate::pg::column::Text;
use crate::pg::schema::Schema;
use crate::pg::session::{self, Snapshot};

/// Writes the event of a coupon that this transaction has just created: no other can see the coupon yet, so its
/// first event.
pub fn write_event(
    schema: Schema,
    name: &str,
    amount: i32,
    starts_at: Option<i64>,
    ends_at: Option<i64>,
) {
    let mut details = json!({"amount": amount});
    for (field, bound) in [("starts_at", starts_at), ("ends_at", ends_at)] {
        if let Some(bound) = bound {
            details[field] = events::moment(bound).into();
        }
    }
    let event = Event {
        kind: "created",
        actor: None,
        details,
    };
    let _snapshot = Snapshot::push();
    events::write(schema, Text::new(name), session::now(), &[event]);
}

/// Waits until the coupon called `name` is durable. A transaction that creates a coupon and claims it is
/// visible before it is flushed.
pub fn wait_until_taken(schema: Schema, name: &str) {
    session::next_command();
    let tables = Tables::open(schema);
    let mut view = View::new(&tables);
    let position = view
        .coupon(Text::new(name))
        .map_or(durability::NOTHING, |coupon| {
            durability::commit_position(coupon.version.written_by)
        });
    view.release();
    durability::wait_until_durable(position);
}
