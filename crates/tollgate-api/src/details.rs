//! The details of a gRPC status: `google.rpc.Status`, which is small enough to be written here.

use prost::Message;
use prost_types::Any;

use crate::v1::RenderedResponse;

/// The type of the only detail.
const RENDERED: &str = "type.googleapis.com/tollgate.v1.RenderedResponse";

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, Message)]
struct DetailedStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

/// The details of a status with a rendered answer.
pub fn status_details(code: i32, message: &str, rendered: &RenderedResponse) -> Vec<u8> {
    let detail = Any { type_url: RENDERED.to_owned(), value: rendered.encode_to_vec() };
    DetailedStatus { code, message: message.to_owned(), details: vec![detail] }.encode_to_vec()
}

/// The rendered answer in the details of a status, if there is one.
pub fn rendered_in(details: &[u8]) -> Option<RenderedResponse> {
    let status = DetailedStatus::decode(details).ok()?;
    let detail = status.details.iter().find(|detail| detail.type_url == RENDERED)?;
    RenderedResponse::decode(&*detail.value).ok()
}
