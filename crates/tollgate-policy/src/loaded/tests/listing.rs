//! The format in which callers read their limits.

use super::GOOD;
use crate::{LoadedPolicy, format::ListingFormat};

/// The listing format of a policy with these additional lines.
fn listing(lines: &str) -> ListingFormat {
    let text = format!("{GOOD}{lines}");
    LoadedPolicy::parse("policy.yaml", &text).unwrap_or_else(|errors| panic!("{lines}\n{errors}")).listing
}

#[test]
fn self_service_takes_precedence_over_the_dialect() {
    assert_eq!(listing("dialect: venice\nself_service: plain\n"), ListingFormat::Plain);
    assert_eq!(listing("dialect: deapi\nself_service: venice\n"), ListingFormat::Venice);
    assert_eq!(listing("self_service: venice\n"), ListingFormat::Venice);
    let own = "dialect: acme\ndialects: {acme: {listing: venice}}\nself_service: plain\n";
    assert_eq!(listing(own), ListingFormat::Plain);
}

#[test]
fn without_self_service_the_dialect_of_the_policy_decides() {
    assert_eq!(listing(""), ListingFormat::Plain);
    assert_eq!(listing("dialect: venice\n"), ListingFormat::Venice);
    for dialect in ["tiered-chat", "deapi", "openai", "anthropic", "ietf", "none"] {
        assert_eq!(listing(&format!("dialect: {dialect}\n")), ListingFormat::Plain, "{dialect}");
    }
}

#[test]
fn a_dialect_of_a_policy_names_its_listing_format() {
    assert_eq!(listing("dialect: acme\ndialects: {acme: {listing: venice}}\n"), ListingFormat::Venice);
    assert_eq!(listing("dialect: acme\ndialects: {acme: {extends: venice, listing: venice}}\n"), ListingFormat::Venice);
    assert_eq!(
        listing("dialect: venice\ndialects: {venice: {extends: venice, listing: plain}}\n"),
        ListingFormat::Plain
    );
    assert_eq!(listing("dialects: {acme: {listing: venice}}\n"), ListingFormat::Plain, "no call uses it by default");
}

#[test]
fn a_dialect_without_a_listing_format_has_that_of_the_built_in_dialect_of_its_name() {
    assert_eq!(listing("dialect: venice\ndialects: {venice: {extends: venice}}\n"), ListingFormat::Venice);
    assert_eq!(listing("dialect: venice\ndialects: {venice: {}}\n"), ListingFormat::Venice);
    assert_eq!(listing("dialect: acme\ndialects: {acme: {extends: venice}}\n"), ListingFormat::Plain);
}
