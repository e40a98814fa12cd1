//! Several databases that share the coupons.

mod events;
mod moves;
mod outages;
mod routing;
mod settings;
