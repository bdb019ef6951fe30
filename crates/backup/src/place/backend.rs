//! A bucket as the library's backend.
//!
//! The library has one of its own. It passes over errors while it lists, so that what cannot be listed
//! seems not to be there, and a removal of what nobody needs any more would remove what is needed. Here
//! a list is complete or an error.

use bytes::Bytes;
use object_store::PutPayload;
use rustic_core::{
    BytesList, ErrorKind, FileType, Id, ReadBackend, RusticError, RusticResult, WriteBackend,
};

use super::CONFIG;
use super::bucket::Bucket;

#[derive(Clone, Debug)]
pub(super) struct BucketBackend(pub(super) Bucket);

fn told(error: crate::Error) -> Box<RusticError> {
    RusticError::with_source(ErrorKind::Backend, "The object store failed.", error)
}

fn name(tpe: FileType, id: &Id) -> String {
    let hex = id.to_hex();
    let hex = hex.as_str();
    match tpe {
        FileType::Config => CONFIG.to_owned(),
        // As the restic program lays it out.
        FileType::Pack => format!("data/{}/{hex}", hex.get(..2).unwrap_or_default()),
        tpe => format!("{}/{hex}", tpe.dirname()),
    }
}

impl ReadBackend for BucketBackend {
    fn location(&self) -> String {
        self.0.to_string()
    }

    fn list_with_size(&self, tpe: FileType) -> RusticResult<Vec<(Id, u32)>> {
        let size = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX);
        if tpe == FileType::Config {
            let head = self.0.head(CONFIG).map_err(told)?;
            return Ok(head.map(|meta| (Id::default(), size(meta.size))).into_iter().collect());
        }
        let objects = self.0.list(tpe.dirname()).map_err(told)?;
        let of = |meta: object_store::ObjectMeta| {
            Some((meta.location.filename()?.parse().ok()?, size(meta.size)))
        };
        Ok(objects.into_iter().filter_map(of).collect())
    }

    fn read_full(&self, tpe: FileType, id: &Id) -> RusticResult<Bytes> {
        let name = name(tpe, id);
        let found = self.0.get(&name).map_err(told)?;
        found.ok_or_else(|| {
            RusticError::new(ErrorKind::Backend, "`{name}` is not in the bucket.")
                .attach_context("name", name)
        })
    }

    fn read_partial(
        &self,
        tpe: FileType,
        id: &Id,
        _cacheable: bool,
        offset: u32,
        length: u32,
    ) -> RusticResult<Bytes> {
        let from = u64::from(offset);
        self.0.get_range(&name(tpe, id), from..from + u64::from(length)).map_err(told)
    }

    fn warmup_path(&self, tpe: FileType, id: &Id) -> String {
        name(tpe, id)
    }
}

impl WriteBackend for BucketBackend {
    fn write_bytes(
        &self,
        tpe: FileType,
        id: &Id,
        _cacheable: bool,
        content: BytesList,
    ) -> RusticResult<()> {
        let content: PutPayload = content.into_vec().into_iter().collect();
        self.0.put(&name(tpe, id), content).map_err(told)
    }

    fn remove(&self, tpe: FileType, id: &Id, _cacheable: bool) -> RusticResult<()> {
        self.0.remove(&name(tpe, id)).map_err(told)
    }
}
