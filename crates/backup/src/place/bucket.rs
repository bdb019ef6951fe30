//! A part of a bucket of an object store.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::str::FromStr;
use std::sync::{Arc, OnceLock, mpsc};
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::path::Path as Name;
use object_store::prefix::PrefixStore;
use object_store::{
    BackoffConfig, ClientOptions, ObjectMeta, ObjectStore, ObjectStoreExt as _, PutPayload,
    RetryConfig,
};
use resurgam_model::plan::{self, BucketUrl, Service};
use tokio::runtime::Runtime;

use super::credentials::{self, Section};
use super::http::Connector;
use crate::{Error, Result};

/// What can be tried again is, for so long. Whoever waits for longer is better told.
const AGAIN: Duration = Duration::from_secs(15);
const TRIES: usize = 6;

/// Variables with which one is let in.
const AWS_KEYS: [&str; 3] = ["aws_access_key_id", "aws_secret_access_key", "aws_session_token"];
const AZURE_KEYS: [&str; 4] = [
    "azure_storage_account_name",
    "azure_storage_account_key",
    "azure_storage_sas_token",
    "azure_storage_token",
];

/// A part of a bucket. All calls block.
#[derive(Clone)]
pub(crate) struct Bucket {
    store: Arc<dyn ObjectStore>,
    url: BucketUrl,
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The store's own output is none of ours to vouch for: it knows the credentials.
        f.debug_struct("Bucket").field("url", &self.url).finish_non_exhaustive()
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.url.fmt(f)
    }
}

impl Bucket {
    /// As the plan says, with credentials from its file, the environment, the usual file, or the machine.
    pub(super) fn of_plan(vault: &plan::Vault, url: &BucketUrl, base: &Path) -> Result<Self> {
        let no = |reason: String| Error::Credentials { vault: vault.name.to_string(), reason };
        let vars = std::env::vars_os()
            .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(_, value)| !value.is_empty());
        let var = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let file = credentials::from_file(vault, base, var)?;
        let settings = settings(vault, url.service, vars, file);
        let let_in = is_let_in(&settings, url.service);
        if !let_in && !vault.instance_credentials {
            return Err(no(missing(url.service)));
        }
        let retry = RetryConfig {
            backoff: BackoffConfig {
                init_backoff: Duration::from_millis(100),
                max_backoff: Duration::from_secs(3),
                base: 2.0,
            },
            max_retries: TRIES,
            retry_timeout: AGAIN,
        };
        let options = ClientOptions::new().with_allow_http(true);
        let store: object_store::Result<Arc<dyn ObjectStore>> = match url.service {
            Service::S3 => each(&settings, AmazonS3Builder::new(), |builder, key, value| {
                builder.with_config(key, value)
            })
            .with_bucket_name(&url.bucket)
            .with_retry(retry)
            .with_client_options(options)
            .with_http_connector(Connector)
            .build()
            .map(|store| Arc::new(PrefixStore::new(store, url.prefix.as_str())) as _),
            Service::Azure => {
                each(&settings, MicrosoftAzureBuilder::new(), |builder, key, value| {
                    builder.with_config(key, value)
                })
                .with_container_name(&url.bucket)
                .with_retry(retry)
                .with_client_options(options)
                .with_http_connector(Connector)
                .build()
                .map(|store| Arc::new(PrefixStore::new(store, url.prefix.as_str())) as _)
            }
        };
        let store = store.map_err(|error| no(error.to_string()))?;
        Ok(Self { store, url: url.clone() })
    }

    #[cfg(test)]
    pub(super) fn in_memory() -> Self {
        let store = Arc::new(object_store::memory::InMemory::new());
        Self { store, url: "s3://memory".parse().unwrap() }
    }

    fn failed(&self, action: &'static str, error: &object_store::Error) -> Error {
        // The library's words hold what the store said, and no credentials.
        let (place, reason) = (self.url.to_string(), error.to_string());
        Error::Store { action, place, reason }
    }

    /// Does something with the store, on threads of its own, so that it works wherever it is called.
    fn with<T: Send + 'static, F>(
        &self,
        action: &'static str,
        call: impl FnOnce(Arc<dyn ObjectStore>) -> F,
    ) -> Result<T>
    where
        F: Future<Output = object_store::Result<T>> + Send + 'static,
    {
        let gone = || Error::Store {
            action,
            place: self.url.to_string(),
            reason: "no thread could be started for it".to_owned(),
        };
        let (tell, told) = mpsc::sync_channel(1);
        let call = call(Arc::clone(&self.store));
        runtime().ok_or_else(gone)?.spawn(async move {
            // Nobody waits any more.
            let _ = tell.send(call.await);
        });
        told.recv().map_err(|_| gone())?.map_err(|error| self.failed(action, &error))
    }

    /// Whether an object is there.
    pub(super) fn exists(&self, name: &str) -> Result<bool> {
        Ok(self.head(name)?.is_some())
    }

    /// What is known of an object, if it is there.
    pub(super) fn head(&self, name: &str) -> Result<Option<ObjectMeta>> {
        let name = Name::from(name);
        self.with("be read", |store| async move { found(store.head(&name).await) })
    }

    /// An object, if it is there.
    pub(super) fn get(&self, name: &str) -> Result<Option<Bytes>> {
        let name = Name::from(name);
        self.with("be read", |store| async move {
            match found(store.get(&name).await)? {
                Some(object) => object.bytes().await.map(Some),
                None => Ok(None),
            }
        })
    }

    /// A part of an object.
    pub(super) fn get_range(&self, name: &str, range: Range<u64>) -> Result<Bytes> {
        let name = Name::from(name);
        self.with("be read", |store| async move { store.get_range(&name, range).await })
    }

    /// Writes an object: as a whole, for good, or not at all.
    pub(super) fn put(&self, name: &str, content: PutPayload) -> Result<()> {
        let name = Name::from(name);
        self.with("be written", |store| async move { store.put(&name, content).await.map(drop) })
    }

    /// Removes an object, if it is there.
    pub(super) fn remove(&self, name: &str) -> Result<()> {
        let name = Name::from(name);
        self.with("be written", |store| async move { found(store.delete(&name).await).map(drop) })
    }

    /// The objects below a name, all of them or none.
    pub(super) fn list(&self, below: &str) -> Result<Vec<ObjectMeta>> {
        let below = Name::from(below);
        self.with("be read", |store| async move { store.list(Some(&below)).try_collect().await })
    }

    /// The names of the next parts of the names below a name.
    pub(super) fn folders(&self, below: &str) -> Result<Vec<String>> {
        let below = Name::from(below);
        let list =
            self.with(
                "be read",
                |store| async move { store.list_with_delimiter(Some(&below)).await },
            )?;
        let last = |name: &Name| name.filename().map(str::to_owned);
        Ok(list.common_prefixes.iter().filter_map(last).collect())
    }
}

fn found<T>(outcome: object_store::Result<T>) -> object_store::Result<Option<T>> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(object_store::Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn runtime() -> Option<&'static Runtime> {
    static RUNTIME: OnceLock<Option<Runtime>> = OnceLock::new();
    let make = || {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(2).thread_name("object-store").enable_all().build().ok()
    };
    RUNTIME.get_or_init(make).as_ref()
}

/// What the library is to know: from the environment, from a file, from the plan. What the plan says
/// wins, and a file that it names wins over the environment.
fn settings(
    vault: &plan::Vault,
    service: Service,
    vars: impl Iterator<Item = (String, String)>,
    file: Option<Section>,
) -> BTreeMap<String, String> {
    let (family, keys): (_, &[&str]) = match service {
        Service::S3 => ("aws_", &AWS_KEYS),
        Service::Azure => ("azure_", &AZURE_KEYS),
    };
    let lower = vars.map(|(key, value)| (key.to_ascii_lowercase(), value));
    let mut settings: BTreeMap<_, _> = lower.filter(|(key, _)| key.starts_with(family)).collect();
    if service == Service::Azure {
        // As the restic program calls them.
        for (key, other) in [
            ("azure_storage_account_name", "azure_account_name"),
            ("azure_storage_account_key", "azure_account_key"),
            ("azure_storage_sas_token", "azure_account_sas"),
        ] {
            if let Some(value) = settings.remove(other) {
                settings.entry(key.to_owned()).or_insert(value);
            }
        }
    }
    let by_plan = vault.credentials_file.is_some() || vault.profile.is_some();
    if by_plan || !is_let_in(&settings, service) {
        if file.is_some() {
            settings.retain(|key, _| !keys.contains(&key.as_str()));
        }
        let file = file.into_iter().flatten();
        settings.extend(file.filter(|(key, _)| keys.contains(&key.as_str()) || key == "region"));
    }
    let mut set = |key: &str, value: &Option<String>| {
        if let Some(value) = value {
            settings.insert(key.to_owned(), value.clone());
        }
    };
    match service {
        Service::S3 => {
            set("aws_endpoint", &vault.endpoint);
            set("aws_region", &vault.region);
            if vault.endpoint.is_some() {
                // Else it would win.
                settings.remove("aws_endpoint_url_s3");
                settings.remove("aws_endpoint_url");
            }
        }
        Service::Azure => {
            set("azure_storage_endpoint", &vault.endpoint);
            set("azure_storage_account_name", &vault.account);
        }
    }
    settings
}

/// Whether anything in the settings lets one in.
fn is_let_in(settings: &BTreeMap<String, String>, service: Service) -> bool {
    let has = |key: &str| settings.contains_key(key);
    match service {
        Service::S3 => {
            has("aws_access_key_id")
                || has("aws_web_identity_token_file")
                || has("aws_container_credentials_relative_uri")
                || has("aws_container_credentials_full_uri")
        }
        Service::Azure => {
            has("azure_storage_account_key")
                || has("azure_storage_sas_token")
                || has("azure_storage_token")
                || has("azure_client_secret")
                || has("azure_federated_token_file")
        }
    }
}

fn missing(service: Service) -> String {
    let ways = match service {
        Service::S3 => {
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name credentials_file and profile in the plan"
        }
        Service::Azure => {
            "set AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN, or name credentials_file in the plan"
        }
    };
    format!("{ways}; on a machine of that cloud, instance_credentials = true asks the machine")
}

/// Tells a builder all settings that it knows.
fn each<B, K: FromStr>(
    settings: &BTreeMap<String, String>,
    builder: B,
    set: impl Fn(B, K, &str) -> B,
) -> B {
    settings.iter().fold(builder, |builder, (key, value)| match key.parse() {
        Ok(key) => set(builder, key, value),
        Err(_) => builder,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vault(more: &str) -> plan::Vault {
        let text = format!("[[backup.vaults]]\nname = 'v'\npassword_env = 'P'\n{more}");
        let plan = plan::EffectivePlan::resolve(Some(&text), |_| None).unwrap().plan;
        plan.backup.vaults[0].clone()
    }

    fn of(more: &str, vars: &[(&str, &str)], file: &[(&str, &str)]) -> BTreeMap<String, String> {
        let vault = vault(more);
        let owned = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
        };
        let service = vault.url.as_ref().unwrap().service;
        let file = Some(owned(file)).filter(|file| !file.is_empty());
        settings(&vault, service, owned(vars).into_iter(), file)
    }

    #[test]
    fn a_named_file_wins_over_the_environment_and_that_over_the_usual_file() {
        let vars = [("AWS_ACCESS_KEY_ID", "env"), ("AWS_SESSION_TOKEN", "t"), ("AWS_REGION", "r")];
        let file = [("aws_access_key_id", "file"), ("aws_secret_access_key", "s"), ("x", "y")];
        let key = |settings: &BTreeMap<String, String>| settings["aws_access_key_id"].clone();
        let usual = of("url = 's3://bucket'", &vars, &file);
        assert_eq!((key(&usual).as_str(), usual.len()), ("env", 3));
        let named = of("url = 's3://bucket'\ncredentials_file = 'f'", &vars, &file);
        assert_eq!(key(&named), "file");
        assert!(!named.contains_key("aws_session_token"), "it belongs to the other key");
        assert_eq!(named["aws_region"], "r");
        assert!(!named.contains_key("x"));
        let only = of("url = 's3://bucket'\nregion = 'q'", &vars[2..], &file);
        assert_eq!((key(&only).as_str(), only["aws_region"].as_str()), ("file", "q"));
    }

    #[test]
    fn azure_is_asked_for_by_its_own_and_by_restics_names() {
        let plan = "url = 'az://container'\naccount = 'mine'";
        let azure = of(plan, &[("AZURE_ACCOUNT_KEY", "k"), ("AWS_ACCESS_KEY_ID", "x")], &[]);
        assert_eq!(azure["azure_storage_account_key"], "k");
        assert_eq!(azure["azure_storage_account_name"], "mine");
        assert_eq!(azure.len(), 2);
        assert!(is_let_in(&azure, Service::Azure));
        assert!(!is_let_in(&of(plan, &[], &[]), Service::Azure));
    }

    #[test]
    fn credentials_are_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let text = "[default]\naws_access_key_id = ABC\naws_secret_access_key = geheim\n";
        std::fs::write(dir.path().join("f"), text).unwrap();
        let vault = vault("url = 's3://bucket/x'\ncredentials_file = 'f'");
        let bucket = Bucket::of_plan(&vault, vault.url.as_ref().unwrap(), dir.path()).unwrap();
        let shown = format!("{bucket:?} {bucket}");
        assert!(!shown.contains("geheim") && shown.contains("s3://bucket/x"), "{shown}");
    }

    #[test]
    fn objects_come_back_and_what_is_not_there_is_none() {
        let bucket = Bucket::in_memory();
        assert_eq!(bucket.get("a/b").unwrap(), None);
        assert!(!bucket.exists("a/b").unwrap());
        bucket.remove("a/b").unwrap();
        bucket.put("a/b", PutPayload::from_static(b"content")).unwrap();
        bucket.put("a/c/d", PutPayload::from_static(b"")).unwrap();
        assert_eq!(bucket.get("a/b").unwrap().as_deref(), Some(&b"content"[..]));
        assert_eq!(bucket.get_range("a/b", 1..4).unwrap(), "ont");
        let names: Vec<_> =
            bucket.list("a").unwrap().iter().map(|meta| meta.location.to_string()).collect();
        assert_eq!(names.len(), 2, "{names:?}");
        assert_eq!(bucket.folders("a").unwrap(), ["c"]);
        bucket.remove("a/b").unwrap();
        assert_eq!(bucket.list("a").unwrap().len(), 1);
    }
}
