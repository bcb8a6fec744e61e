//! The tests of stores: in memory and in Redis, which each test starts for itself. One binary; all tests may run in
//! parallel. `tests/README.md` says which test is where.

#[cfg(test)]
mod accounts;
#[cfg(test)]
mod batches;
#[cfg(test)]
mod caller_named;
#[cfg(test)]
mod cluster;
#[cfg(test)]
mod conformance;
#[cfg(test)]
mod corruption;
#[cfg(test)]
mod harness;
#[cfg(test)]
mod pools;
#[cfg(test)]
mod promises;
#[cfg(test)]
mod refusals;
#[cfg(test)]
mod replicas;
#[cfg(test)]
mod reservations;
#[cfg(test)]
mod shadow;
#[cfg(test)]
mod topologies;
#[cfg(test)]
mod usual;
#[cfg(test)]
mod versions;
