//! Buckets of object stores, as URLs name them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Which protocol an object store speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// Amazon S3, and whatever is compatible.
    S3,
    /// Azure Blob Storage.
    Azure,
}

/// A part of a bucket: `s3://BUCKET/PREFIX` or `az://CONTAINER/PREFIX`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BucketUrl {
    /// The protocol.
    pub service: Service,
    /// The bucket, or container.
    pub bucket: String,
    /// What the names of all objects begin with; may be empty.
    pub prefix: String,
}

/// A text is no such URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("write s3://BUCKET/PREFIX or az://CONTAINER/PREFIX; where it is, the key endpoint says")]
pub struct BadBucketUrl;

impl FromStr for BucketUrl {
    type Err = BadBucketUrl;

    fn from_str(text: &str) -> Result<Self, BadBucketUrl> {
        let (scheme, rest) = text.split_once("://").ok_or(BadBucketUrl)?;
        let service = match scheme {
            "s3" => Service::S3,
            "az" => Service::Azure,
            _ => return Err(BadBucketUrl),
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        // The rules of both services, roughly; what is left they refuse themselves.
        let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
        let plain = |c: char| c.is_ascii_alphanumeric() || "-._/".contains(c);
        let parts = prefix.trim_end_matches('/').split('/');
        let odd = |part: &str| part.is_empty() || part == "." || part == "..";
        let bad_prefix =
            !prefix.is_empty() && (!prefix.chars().all(plain) || parts.clone().any(odd));
        if !(3..=63).contains(&bucket.len()) || !bucket.chars().all(letter) || bad_prefix {
            return Err(BadBucketUrl);
        }
        let prefix = prefix.trim_end_matches('/').to_owned();
        Ok(Self { service, bucket: bucket.to_owned(), prefix })
    }
}

impl fmt::Display for BucketUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.service {
            Service::S3 => "s3",
            Service::Azure => "az",
        };
        write!(f, "{scheme}://{}/{}", self.bucket, self.prefix)
    }
}

impl TryFrom<String> for BucketUrl {
    type Error = BadBucketUrl;

    fn try_from(text: String) -> Result<Self, BadBucketUrl> {
        text.parse()
    }
}

impl From<BucketUrl> for String {
    fn from(url: BucketUrl) -> Self {
        url.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_service_bucket_and_prefix() {
        let parse = |text: &str| text.parse::<BucketUrl>();
        let url = parse("s3://backups/dr/here/").unwrap();
        let of = (url.service, url.bucket.as_str(), url.prefix.as_str());
        assert_eq!(of, (Service::S3, "backups", "dr/here"));
        assert_eq!(url.to_string(), "s3://backups/dr/here");
        let url = parse("az://backups").unwrap();
        assert_eq!((url.service, url.prefix.as_str()), (Service::Azure, ""));
        for bad in [
            "backups",
            "s3:/backups",
            "gs://backups",
            "s3://",
            "s3://B/x",
            "s3://abc//x",
            "s3://abc/../x",
            "s3://key:secret@abc/x",
            "s3://abc/x?y",
        ] {
            assert_eq!(parse(bad), Err(BadBucketUrl), "{bad}");
        }
    }

    #[test]
    fn what_does_not_fit_where_a_vault_lies_is_said() {
        for (text, word) in [
            ("", "exactly one of path and url"),
            ("path = 'p'\nurl = 's3://abc'", "exactly one of path and url"),
            ("path = 'p'\nregion = 'x'", "begins with s3://"),
            ("path = 'p'\ncredentials_file = 'x'", "only for an object store"),
            ("url = 'az://abc'\nregion = 'x'", "begins with s3://"),
            ("url = 's3://abc'\naccount = 'x'", "begins with az://"),
            ("url = 's3://abc'\nendpoint = 'x'", "must begin with https://"),
            ("url = 'az://abc'\nprofile = 'x'", "needs credentials_file"),
            ("url = 'ftp://abc'", "write s3://BUCKET/PREFIX"),
        ] {
            let text = format!("[[backup.vaults]]\nname = 'v'\npassword_env = 'P'\n{text}");
            let found = super::super::EffectivePlan::resolve(Some(&text), |_| None);
            let found = found.unwrap_err().to_string();
            assert!(found.contains(word), "{text}: {found}");
        }
    }
}
