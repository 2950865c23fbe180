//! The public API under paused time.

mod common;
mod otp;
mod stop;
