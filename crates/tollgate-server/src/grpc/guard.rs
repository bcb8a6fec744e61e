//! The door of the gRPC API: whoever may not enter is answered before a message is read.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tonic::{
    Extensions, Status,
    body::Body,
    codegen::{Service, http},
    server::NamedService,
};

use crate::auth::{Doors, Refusal, ServiceGrant};

/// A gRPC service that only services with a grant may call. The grant comes along as an extension of each
/// request.
#[derive(Clone)]
pub(crate) struct Guarded<S> {
    inner: S,
    doors: Arc<Doors>,
}

impl<S> Guarded<S> {
    pub(crate) fn new(inner: S, doors: Arc<Doors>) -> Self {
        Self { inner, doors }
    }
}

impl<S: NamedService> NamedService for Guarded<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, B> Service<http::Request<B>> for Guarded<S>
where
    S: Service<http::Request<B>, Response = http::Response<Body>, Error = Infallible, Future: Send + 'static>,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<B>) -> Self::Future {
        match self.doors.service(request.headers()) {
            Ok(grant) => {
                request.extensions_mut().insert(grant);
                Box::pin(self.inner.call(request))
            }
            Err(refusal) => Box::pin(std::future::ready(Ok(Status::from(refusal).into_http()))),
        }
    }
}

/// The grant of a request that passed the door.
pub(super) fn grant(extensions: &Extensions) -> Result<&ServiceGrant, Status> {
    extensions.get().ok_or_else(|| Status::internal("the service is not behind its door"))
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let text = refusal.to_string();
        // The HTTP statuses stand in rest/guard.rs, in the same order.
        match refusal {
            Refusal::Missing(_) | Refusal::Unknown(_) | Refusal::NoAdmins => Self::unauthenticated(text),
        }
    }
}
