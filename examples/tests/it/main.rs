//! The patterns together, in closure and in tower form, and the main program as a real process.

mod closures;
mod fetch_all;
mod limited_server;
mod tower;
