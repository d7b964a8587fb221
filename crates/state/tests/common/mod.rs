//! Real servers that state is kept in.

#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

#[path = "../../../cluster/tests/common/etcd.rs"]
pub mod etcd;
pub mod s3;
pub mod servers;
