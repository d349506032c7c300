//! The plan of a training.

use std::io::{Read, Seek, SeekFrom};

use asymflow_residual::backend::Pass;

use super::work::weight_bytes;
use super::{MemoryError, MemoryPlan, Work};
use crate::job::{DataSpec, JobSpec, TrainSpec};
use crate::modes::Registry;

/// Images of the built-in set where a job names no number, and of a data set on disk, which is read whole.
const BUILT_IN: (usize, usize) = (5000, 1000);

impl<'a> Work<'a> {
    /// What the mode of `job` is to do in `passes`, planned for batches of `batch` samples.
    pub(crate) const fn of(
        job: &'a JobSpec,
        (batch, passes): (usize, &'a [(usize, Pass)]),
        registry: &'a Registry,
    ) -> Self {
        let (network, threads) = (&job.network, job.threads);
        Self { network, batch, passes, records: None, threads, is_streamed: false, registry }
    }
}

impl MemoryPlan {
    /// What training as `spec` says in the mode and on the data of `job` is planned to take at most.
    pub(crate) fn of_training(job: &JobSpec, spec: &TrainSpec, registry: &Registry) -> Result<Self, MemoryError> {
        let mode = registry.decode(&job.mode).map_err(MemoryError::job)?;
        let (train, test) = counts(&job.data);
        let rest = |images: usize| Some(images % spec.batch.max(1)).filter(|&rest| rest > 0);
        let (batch, tested) = (spec.batch.min(train), spec.batch.min(test));
        let step = (batch, Pass::Training);
        let mut passes = vec![step, step];
        passes.extend(rest(train).map(|rest| (rest, Pass::Training)));
        passes.push((tested, Pass::Inference));
        passes.extend(rest(test).map(|rest| (rest, Pass::Inference)));
        passes.push(step);
        let work = Work { records: Some((train, test)), ..Work::of(job, (spec.batch, &passes), registry) };
        let mut plan = work.plan(&*mode)?;
        let weights = weight_bytes(&mode.stored_network(&job.network).map_err(MemoryError::job)?);
        let record = job.network.input.len() as u64 + 4;
        let images = (train + test) as u64 * record;
        plan.data_bytes = images.max(disk_bytes(&job.data)) + (batch * (4 * job.network.input.len() + 8)) as u64;
        plan.startup_bytes += plan.data_bytes + weights;
        // Weights and momentum: flattened, as bytes, and as the file.
        plan.checkpoint_bytes += 6 * weights;
        Ok(plan.peaked())
    }
}

fn counts(data: &DataSpec) -> (usize, usize) {
    (data.train.unwrap_or(BUILT_IN.0), data.test.unwrap_or(BUILT_IN.1))
}

/// Bytes of a data set as it is read; zero for the built-in one, and where it cannot be read.
fn disk_bytes(data: &DataSpec) -> u64 {
    fn of(path: &std::path::Path) -> u64 {
        match std::fs::read_dir(path) {
            Ok(entries) => entries.flatten().map(|entry| of(&entry.path())).sum(),
            Err(_) => read_bytes(path).unwrap_or(0),
        }
    }
    data.path.as_deref().map_or(0, of)
}

/// Bytes of a file, decompressed where it is gzipped: its last four bytes are that length, below 4 GiB (RFC 1952, 2.3.1).
fn read_bytes(path: &std::path::Path) -> std::io::Result<u64> {
    let mut file = std::fs::File::open(path)?;
    let (mut magic, mut length) = ([0; 2], [0; 4]);
    let bytes = file.metadata()?.len();
    if bytes < 18 || file.read_exact(&mut magic).is_err() || magic != [0x1f, 0x8b] {
        return Ok(bytes);
    }
    file.seek(SeekFrom::End(-4))?;
    file.read_exact(&mut length)?;
    Ok(bytes.max(u64::from(u32::from_le_bytes(length))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gzipped_file_counts_as_what_it_holds() {
        // What `head -c 100000 /dev/zero | gzip -9` begins and ends with, and a plain file of the same length.
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let mut zipped = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 2, 3];
        zipped.resize(100, 0);
        zipped.extend(100_000_u32.to_le_bytes());
        std::fs::write(at("zipped"), &zipped).unwrap();
        std::fs::write(at("plain"), &zipped[1..]).unwrap();
        assert_eq!(read_bytes(&at("zipped")).unwrap(), 100_000);
        assert_eq!(read_bytes(&at("plain")).unwrap(), 103);
    }
}
