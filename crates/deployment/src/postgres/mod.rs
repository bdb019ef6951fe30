//! x
pub mod contain;
pub mod fuse;
pub mod programs;
