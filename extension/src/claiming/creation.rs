//! The refusal to create a coupon whose name is taken.

use crate::claiming::durability;
use crate::claiming::store::{Tables, View};
use crate::pg::column::Text;
use crate::pg::schema::Schema;
use crate::pg::session;

/// Waits until the coupon called `name` is durable. A transaction that creates a coupon and claims it is
/// visible before it is flushed.
pub fn wait_until_taken(schema: Schema, name: &str) {
    session::next_command();
    let tables = Tables::open(schema);
    let mut view = View::new(&tables);
    let position = view
        .coupon(Text::new(name))
        .map_or(durability::NOTHING, |coupon| {
            durability::commit_position(coupon.written_by)
        });
    view.release();
    durability::wait_until_durable(position);
}
