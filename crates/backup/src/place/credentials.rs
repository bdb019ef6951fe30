//! Credentials in files of the form of `~/.aws/credentials`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use resurgam_model::plan;

use crate::{Error, Result};

/// The section that is read when nobody names one.
const DEFAULT: &str = "default";

/// Keys and values of a section. They are secret: nothing of this is to be shown.
pub(super) type Section = BTreeMap<String, String>;

/// The credentials for a vault's object store that lie in a file; none if no file is named and the
/// usual one is not there or has no such section.
///
/// # Errors
/// When a file or a section that is named is not there.
pub(super) fn from_file(
    vault: &plan::Vault,
    base: &Path,
    var: impl Fn(&str) -> Option<String>,
) -> Result<Option<Section>> {
    let named = vault.credentials_file.as_ref().map(|file| base.join(file));
    let by_name = named.is_some();
    let usual = || {
        let by_var = var("AWS_SHARED_CREDENTIALS_FILE").map(PathBuf::from);
        by_var.or_else(|| Some(PathBuf::from(var("HOME")?).join(".aws/credentials")))
    };
    // That file is about one of the services.
    let usual_fits = vault.url.as_ref().is_some_and(|url| url.service == plan::Service::S3);
    let Some(file) = named.or_else(|| usual().filter(|_| usual_fits)) else { return Ok(None) };
    let no = |reason: String| Error::Credentials { vault: vault.name.to_string(), reason };
    let text = match std::fs::read_to_string(&file) {
        Ok(text) => text,
        Err(_) if !by_name && vault.profile.is_none() => return Ok(None),
        Err(error) => return Err(no(format!("{} cannot be read: {error}", file.display()))),
    };
    let wanted = vault.profile.clone().or_else(|| var("AWS_PROFILE"));
    let must = by_name || wanted.is_some();
    let wanted = wanted.unwrap_or_else(|| DEFAULT.to_owned());
    match section(&text, &wanted) {
        None if must => Err(no(format!("{} has no section [{wanted}]", file.display()))),
        found => Ok(found),
    }
}

/// A section of such a file.
fn section(text: &str, wanted: &str) -> Option<Section> {
    let mut found: Option<Section> = None;
    let mut inside = false;
    for line in text.lines().map(str::trim) {
        if line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            inside = name.trim() == wanted;
            if inside {
                found.get_or_insert_default();
            }
        } else if let (true, Some((key, value))) = (inside, line.split_once('=')) {
            let (key, value) = (key.trim().to_ascii_lowercase(), value.trim().to_owned());
            found.get_or_insert_default().insert(key, value);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# mine\n[default]\naws_access_key_id = one\n; not this\n\n\
        [ dr ]\nAWS_ACCESS_KEY_ID=two\naws_secret_access_key = a=b\n";

    fn vault(more: &str) -> plan::Vault {
        let text = format!(
            "[[backup.vaults]]\nname = 'v'\nurl = 's3://bucket'\npassword_env = 'P'\n{more}"
        );
        let plan = plan::EffectivePlan::resolve(Some(&text), |_| None).unwrap().plan;
        plan.backup.vaults[0].clone()
    }

    #[test]
    fn sections_are_found_by_name() {
        let of = |name| section(FILE, name);
        assert_eq!(of("default").unwrap()["aws_access_key_id"], "one");
        let dr = of("dr").unwrap();
        assert_eq!((dr.len(), dr["aws_secret_access_key"].as_str()), (2, "a=b"));
        assert_eq!(of("other"), None);
    }

    #[test]
    fn what_is_named_must_be_there_and_what_is_usual_may() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(".aws")).unwrap();
        std::fs::write(dir.path().join(".aws/credentials"), FILE).unwrap();
        let home = dir.path().display().to_string();
        let key = |vault: &plan::Vault, vars: &[(&str, &str)]| {
            let var = |name: &str| {
                vars.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
            };
            let found = from_file(vault, dir.path(), var).map_err(|error| error.to_string())?;
            Ok::<_, String>(found.map(|section| section["aws_access_key_id"].clone()))
        };
        let is = |key: &str| Ok(Some(key.to_owned()));
        let home = ("HOME", home.as_str());
        assert_eq!(key(&vault(""), &[home]), is("one"));
        assert_eq!(key(&vault(""), &[home, ("AWS_PROFILE", "dr")]), is("two"));
        assert_eq!(key(&vault("profile = 'dr'"), &[home]), is("two"));
        assert_eq!(key(&vault("credentials_file = '.aws/credentials'"), &[]), is("one"));
        assert_eq!(key(&vault(""), &[("HOME", "/nowhere")]), Ok(None));
        assert_eq!(key(&vault(""), &[]), Ok(None));
        for (more, word) in
            [("credentials_file = 'x'", "cannot be read"), ("profile = 'x'", "no section [x]")]
        {
            let error = key(&vault(more), &[home]).unwrap_err();
            assert!(error.contains(word) && error.contains("vault v"), "{error}");
        }
    }
}
