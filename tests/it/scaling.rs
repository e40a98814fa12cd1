//! Several databases that share the coupons.

mod events;
mod outages;
mod routing;
mod settings;
