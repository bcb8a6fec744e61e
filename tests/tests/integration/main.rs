//! The integration tests: nodes in this process with injected time, or as processes, each with Redis servers of its
//! own. One binary; every test may run in parallel with every other.

#[cfg(test)]
mod abuse;
#[cfg(test)]
mod access;
#[cfg(test)]
mod accounts;
#[cfg(test)]
mod alerts;
#[cfg(test)]
mod bad_input;
#[cfg(test)]
mod batch;
#[cfg(test)]
mod caller_named;
#[cfg(test)]
mod chaos;
#[cfg(test)]
mod explain;
#[cfg(test)]
mod failure_modes;
#[cfg(test)]
mod forged_ids;
#[cfg(test)]
mod grpc;
#[cfg(test)]
mod harness;
#[cfg(test)]
mod health;
#[cfg(test)]
mod incidents;
#[cfg(test)]
mod layout;
#[cfg(test)]
mod lifecycle;
#[cfg(test)]
mod listing;
#[cfg(test)]
mod logs;
#[cfg(test)]
mod metrics;
#[cfg(test)]
mod openapi;
#[cfg(test)]
mod overload;
#[cfg(test)]
mod pacing;
#[cfg(test)]
mod platform_documents;
#[cfg(test)]
mod pools;
#[cfg(test)]
mod promises;
#[cfg(test)]
mod reload;
#[cfg(test)]
mod rendering;
#[cfg(test)]
mod reported_numbers;
#[cfg(test)]
mod requests;
#[cfg(test)]
mod reservations;
#[cfg(test)]
mod resilience;
#[cfg(test)]
mod rolling;
#[cfg(test)]
mod self_service;
#[cfg(test)]
mod shadow;
#[cfg(test)]
mod topologies;
#[cfg(test)]
mod usage;
#[cfg(test)]
mod visibility;
