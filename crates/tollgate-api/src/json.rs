//! The JSON bodies of `/v1` and `/admin/v1`, for nodes and their clients. The comments of types and fields are their
//! descriptions in `/openapi.json`.

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

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use super::{admin::IssuedBody, batch::BatchBody, call::CallerBody};

    /// Types with `Debug` have two implementations, so that `Unprintable<_>` is ambiguous and does not compile.
    trait Unprintable<Case> {
        fn check() {}
    }

    impl<T> Unprintable<()> for T {}
    impl<T: Debug> Unprintable<u8> for T {}

    /// Does not compile (error E0283) with `Debug` on `IssuedBody`. Types that contain a `CallerBody` cannot have
    /// `Debug`.
    #[test]
    fn bodies_with_secrets_cannot_be_printed() {
        <CallerBody as Unprintable<_>>::check();
        <BatchBody as Unprintable<_>>::check();
        <IssuedBody as Unprintable<_>>::check();
    }
}
