//! Workflows: starting them, looking at them, and telling them something.

use http::Method;
use resurgam_model::workflow::{
    DefinitionInfo, NewSignal, StartWorkflow, StartedWorkflow, Workflow, WorkflowDetail,
    WorkflowQuery, WorkflowStepView, page_limit,
};
use resurgam_model::{Duration, WorkflowId};
use serde_json::Value;

use crate::client::{Client, Result, found};
use crate::wire;

impl Client {
    /// Starts a workflow. Only with an idempotency key is it safe to repeat.
    pub async fn start_workflow(&self, start: &StartWorkflow) -> Result<StartedWorkflow> {
        self.post("workflows", start).await
    }

    /// One workflow with its steps, if there is such a one.
    pub async fn workflow(&self, id: WorkflowId) -> Result<Option<WorkflowDetail>> {
        found(self.get(&format!("workflows/{id}"), &[]).await)
    }

    /// A step with its whole output, and those of its items that come after one.
    pub async fn workflow_step(
        &self,
        id: WorkflowId,
        query: &wire::StepQuery,
    ) -> Result<Vec<WorkflowStepView>> {
        let mut parameters =
            vec![("step", query.step.clone()), ("limit", page_limit(query.limit).to_string())];
        parameters.extend(query.after.map(|after| ("after", after.to_string())));
        let answer: wire::WorkflowSteps<_> =
            self.get(&format!("workflows/{id}/step"), &parameters).await?;
        Ok(answer.steps)
    }

    /// Lists workflows.
    pub async fn workflows(&self, query: &WorkflowQuery) -> Result<Vec<Workflow>> {
        let mut parameters = vec![("limit", page_limit(query.limit).to_string())];
        parameters.extend(query.state.map(|state| ("state", state.as_str().to_owned())));
        parameters.extend(query.name.clone().map(|name| ("name", name)));
        parameters.extend(query.after.map(|after| ("after", after.to_string())));
        let answer: wire::WorkflowList<_> = self.get("workflows", &parameters).await?;
        Ok(answer.workflows)
    }

    /// Has a workflow come to its end and undo what was completed.
    pub async fn cancel_workflow(&self, id: WorkflowId, reason: Option<&str>) -> Result<()> {
        let body = wire::CancelWorkflow { reason: reason.map(str::to_owned) };
        let url = self.url(&format!("workflows/{id}/cancel"), &[])?;
        self.exchange(Method::POST, url, Some(&body), Duration::default()).await.map(drop)
    }

    /// Lets a failed or cancelled workflow go on.
    pub async fn retry_workflow(&self, id: WorkflowId) -> Result<()> {
        let url = self.url(&format!("workflows/{id}/retry"), &[])?;
        self.exchange::<()>(Method::POST, url, None, Duration::default()).await.map(drop)
    }

    /// Leaves a signal. Only with an id is it safe to repeat.
    pub async fn signal_workflow(&self, id: WorkflowId, signal: &NewSignal) -> Result<()> {
        let url = self.url(&format!("workflows/{id}/signal"), &[])?;
        self.exchange(Method::POST, url, Some(signal), Duration::default()).await.map(drop)
    }

    /// Registers a definition. Repeating it is harmless.
    pub async fn define_workflow(&self, name: &str, definition: &Value) -> Result<DefinitionInfo> {
        let url = self.url(&definition_path(name), &[])?;
        self.call(Method::PUT, url, Some(definition), Duration::default()).await
    }

    /// A registered definition, the latest version if none is named.
    pub async fn workflow_definition(
        &self,
        name: &str,
        version: Option<u32>,
    ) -> Result<Option<DefinitionInfo>> {
        let version = version.map(|version| ("version", version.to_string()));
        let parameters: Vec<_> = version.into_iter().collect();
        found(self.get(&definition_path(name), &parameters).await)
    }

    /// The first page of registered definitions, or the one after a name and version.
    pub async fn workflow_definitions(
        &self,
        after: Option<(&str, u32)>,
    ) -> Result<Vec<DefinitionInfo>> {
        let mut parameters = vec![("limit", page_limit(0).to_string())];
        if let Some((name, version)) = after {
            parameters.push(("after", name.to_owned()));
            parameters.push(("after_version", version.to_string()));
        }
        let answer: wire::DefinitionList<_> = self.get("definitions", &parameters).await?;
        Ok(answer.definitions)
    }
}

/// Names may hold `/`, which would be the end of the name in a path.
fn definition_path(name: &str) -> String {
    format!("definitions/{}", name.replace('/', "%2F"))
}
