//! A coupon's stock and state, as readers see them.

use crate::claiming::draft::Draft;
use crate::claiming::store::coupons::Coupon;
use crate::claiming::store::{Tables, View};
use crate::pg::column::Text;
use crate::pg::schema::Schema;
use crate::pg::session;

/// A coupon's stock.
pub struct Stock {
    /// The coupon.
    pub coupon: Coupon,
    /// Answer that a claim by a new user would get: `open`, or a refusal.
    pub state: &'static str,
    /// The id of the newest claim, 0 if there is none.
    pub last_claim_id: i64,
}

/// Reads the stock of the coupon called `name`, under the snapshot of the calling statement.
pub fn read(schema: Schema, name: &str) -> Option<Stock> {
    let tables = Tables::open(schema);
    let mut view = View::of_statement(&tables);
    let coupon_name = Text::new(name);
    let coupon = view.coupon(coupon_name)?;
    Some(Stock {
        state: state_of(&mut view, coupon_name, coupon.clone()),
        last_claim_id: tables.claims.last_id(coupon_name),
        coupon,
    })
}

/// The coupon called `name` and its state, as this transaction, and triggers in it, have left it.
pub fn changed(schema: Schema, name: &str) -> Option<(Coupon, &'static str)> {
    session::next_command();
    let tables = Tables::open(schema);
    let mut view = View::new(&tables);
    let coupon_name = Text::new(name);
    let coupon = view.coupon(coupon_name)?;
    let state = state_of(&mut view, coupon_name, coupon.clone());
    Some((coupon, state))
}

/// The state of `coupon`, called `coupon_name`, which `view` has found: `open`, or the refusal of a claim.
pub fn state_of(view: &mut View<'_>, coupon_name: Text, coupon: Coupon) -> &'static str {
    match Draft::new(coupon, coupon_name, 0).refusal(view) {
        None => "open",
        Some(answer) => answer.outcome.label(),
    }
}
