//! What the file operations of a change add up to: each of them failing, and a crash after each.

mod crash;
mod faults;
mod hooked;
