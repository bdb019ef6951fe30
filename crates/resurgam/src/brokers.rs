//! The brokers that `resurgam up` runs itself.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use resurgam_deployment::ComponentKind;
use resurgam_deployment::brokers::{KafkaNode, KafkaPrograms, Node, RabbitNode, RabbitPrograms};
use resurgam_model::ComponentName;
use resurgam_model::bus::BusKind;
use resurgam_model::plan::Bus;

use crate::failure::Failure;

/// A node that is ready to be started.
pub(crate) struct Laid {
    /// What describes it.
    pub(crate) file: PathBuf,
    /// Where clients connect.
    pub(crate) address: SocketAddr,
}

/// Lays out the nodes that the plan wants to be run here, and says in the plan where they are.
/// `port` gives an address for a purpose, the same one each time.
pub(crate) fn own(
    bus: &mut Bus,
    state: &Path,
    mut port: impl FnMut(&str) -> Result<SocketAddr, Failure>,
) -> Result<Vec<(ComponentName, ComponentKind, Laid)>, Failure> {
    let mut all = Vec::new();
    let secrets = state.join("secrets");
    if bus.order.contains(&BusKind::Kafka) && bus.kafka.brokers > 0 {
        let programs = KafkaPrograms::find(bus.kafka.home.as_deref())?;
        let dir = private_dir(&state.join("kafka"))?;
        let cluster = kept(&dir.join("cluster"), KafkaNode::new_cluster)?;
        let numbers = 1..=bus.kafka.brokers;
        let controllers = numbers
            .clone()
            .map(|id| Ok((id, port(&format!("kafka-{id}-controller"))?)))
            .collect::<Result<Vec<_>, Failure>>()?;
        for id in numbers {
            let name = format!("kafka-{id}");
            let address = port(&name)?;
            bus.kafka.bootstrap.push(address.to_string());
            let node = Node::Kafka(KafkaNode {
                programs: programs.clone(),
                dir: dir.join(&name),
                id,
                address,
                controllers: controllers.clone(),
                cluster: cluster.clone(),
            });
            all.push((
                ComponentName::new(&*name)?,
                ComponentKind::Kafka,
                lay(&node, &dir, &name, address)?,
            ));
        }
        // From here on it is a cluster like any other.
        bus.kafka.brokers = 0;
    }
    if bus.order.contains(&BusKind::RabbitMq) && bus.rabbitmq.nodes > 0 {
        let programs = RabbitPrograms::find(bus.rabbitmq.home.as_deref())?;
        let dir = private_dir(&state.join("rabbitmq"))?;
        private_dir(&secrets)?;
        let random = || uuid::Uuid::new_v4().simple().to_string();
        let name = "rabbitmq-0";
        let node = RabbitNode {
            programs,
            dir: dir.join(name),
            name: name.to_owned(),
            address: port(name)?,
            management: port("rabbitmq-0-management")?,
            distribution: port("rabbitmq-0-distribution")?.port(),
            port_mapper: port("rabbitmq-0-port-mapper")?.port(),
            username: "resurgam".to_owned(),
            password: kept(&secrets.join("rabbitmq"), random)?,
        };
        bus.rabbitmq.urls.push(node.url());
        bus.rabbitmq.management = Some(node.management_url());
        bus.rabbitmq.nodes = 0;
        let address = node.address;
        let laid = lay(&Node::RabbitMq(node), &dir, name, address)?;
        all.push((ComponentName::new(name)?, ComponentKind::RabbitMq, laid));
    }
    Ok(all)
}

fn lay(node: &Node, dir: &Path, name: &str, address: SocketAddr) -> Result<Laid, Failure> {
    let file = dir.join(format!("{name}.json"));
    node.write(&file)?;
    Ok(Laid { file, address })
}

/// A value that was chosen once, for this user alone.
fn kept(file: &Path, choose: impl FnOnce() -> String) -> Result<String, Failure> {
    match fs::read_to_string(file) {
        Ok(value) if !value.is_empty() => return Ok(value),
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => {
            return Err(Failure::new(format!("cannot read {}: {error}", file.display())));
        }
    }
    let value = choose();
    let temporary = file.with_extension("new");
    let mut options = fs::OpenOptions::new();
    let mut opened =
        options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    std::io::Write::write_all(&mut opened, value.as_bytes())?;
    opened.sync_all()?;
    fs::rename(&temporary, file)?;
    Ok(value)
}

fn private_dir(dir: &Path) -> Result<PathBuf, Failure> {
    fs::create_dir_all(dir)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
    Ok(dir.to_owned())
}
