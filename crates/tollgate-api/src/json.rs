//! The JSON bodies of `/v1` and `/admin/v1`, for nodes and their clients. The comments of types and fields are the descriptions
//! in `/openapi.json`.

pub mod admin;
pub mod batch;
pub mod call;
pub mod decision;
pub mod entries;
pub mod error;
pub mod list;
pub mod number;
pub mod report;
pub mod reservation;
