//! What the owner of directory shards answers.

use fulmar_model::{Epoch, SiteName};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use tonic::{Request, Response, Status};

use super::{Service, caller, group, node};
use crate::directory::{Answer, DirectoryError, Home, Question};
use crate::wire::{
    self, AskReply, AskRequest, HomesOfReply, HomesOfRequest, IntroduceReply, IntroduceRequest,
    ask_request,
};

/// Groups in one part of a list.
const GROUPS_AT_ONCE: usize = 1000;

fn question(question: Option<ask_request::Question>) -> Result<Question, Status> {
    let home = |name: &str, epoch: u64| -> Result<Home, Status> {
        Ok(Home {
            node: node(name)?,
            epoch: Epoch(epoch),
        })
    };
    match question {
        Some(ask_request::Question::Find(find)) => Ok(Question::Find {
            claimant: match find.claimant.as_str() {
                "" => None,
                name => Some(node(name)?),
            },
        }),
        Some(ask_request::Question::Relocate(relocate)) => Ok(Question::Relocate {
            from: home(&relocate.from, relocate.epoch)?,
            to: node(&relocate.to)?,
        }),
        Some(ask_request::Question::Forget(forget)) => Ok(Question::Forget {
            home: home(&forget.home, forget.epoch)?,
        }),
        None => Err(Status::invalid_argument("the call asks nothing")),
    }
}

fn unavailable(error: DirectoryError) -> Status {
    Status::unavailable(error.to_string())
}

#[tonic::async_trait]
impl wire::directory_server::Directory for Service {
    async fn ask(&self, request: Request<AskRequest>) -> Result<Response<AskReply>, Status> {
        caller(&request)?;
        let message = request.into_inner();
        let group = group(message.group)?;
        let question = question(message.question)?;
        let answer = self.cluster.directory().answer(&group, &question).await;
        let mut reply = AskReply::default();
        match answer.map_err(unavailable)? {
            Answer::NotOwner => reply.not_owner = true,
            Answer::AtSite(site) => reply.at_site = site.to_string(),
            Answer::Home(None) => {}
            Answer::Home(Some(home)) => {
                reply.home = home.node.to_string();
                reply.epoch = home.epoch.0;
            }
        }
        Ok(Response::new(reply))
    }

    async fn introduce(
        &self,
        request: Request<IntroduceRequest>,
    ) -> Result<Response<IntroduceReply>, Status> {
        caller(&request)?;
        let message = request.into_inner();
        let group = group(message.group)?;
        let site = SiteName::new(&message.site)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let directory = self.cluster.directory();
        let introduced = directory.introduced(&group, &site, message.claim).await;
        let introduced = introduced.map_err(unavailable)?;
        Ok(Response::new(IntroduceReply {
            not_owner: introduced.is_none(),
            site: introduced
                .flatten()
                .map(|site| site.to_string())
                .unwrap_or_default(),
        }))
    }

    type HomesOfStream = BoxStream<'static, Result<HomesOfReply, Status>>;

    async fn homes_of(
        &self,
        request: Request<HomesOfRequest>,
    ) -> Result<Response<Self::HomesOfStream>, Status> {
        caller(&request)?;
        let node = node(&request.into_inner().node)?;
        let homes = self.cluster.directory().homes_of(&node).await;
        let homes = homes.map_err(unavailable)?;
        let parts: Vec<_> = homes
            .chunks(GROUPS_AT_ONCE)
            .map(|some| {
                let groups = some.iter().map(|(group, epoch)| wire::GroupAt {
                    group: Some(group.into()),
                    epoch: epoch.0,
                });
                Ok(HomesOfReply {
                    groups: groups.collect(),
                })
            })
            .collect();
        Ok(Response::new(futures_util::stream::iter(parts).boxed()))
    }
}
