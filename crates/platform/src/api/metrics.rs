//! `GET /metrics`: figures for Prometheus.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use resurgam_metrics::Format;
use resurgam_model::Role;

use super::App;
use super::route::Route;

pub(super) fn routes() -> Vec<Route> {
    let about = "Figures for Prometheus";
    vec![
        Route::get("/metrics", metrics)
            .about(about)
            .details(
                "In the text format of Prometheus, or as OpenMetrics when `Accept` names \
                 `application/openmetrics-text`. docs/metrics.md says what each figure means.",
            )
            .served_by(&Role::ALL)
            .answers_as::<String>(StatusCode::OK, "text/plain", about)
            .answers_as::<String>(StatusCode::OK, "application/openmetrics-text", about),
    ]
}

/// In the format that `Accept` asks for. Answers also while the database is away.
pub(super) async fn metrics(State(app): State<Arc<App>>, headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    let format = Format::accepted(accept);
    let text = app.metrics.scrape(&app.store, format).await;
    ([(header::CONTENT_TYPE, format.content_type())], text).into_response()
}
