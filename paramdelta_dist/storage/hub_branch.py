"""An output on the Hub while it is made: a branch of its own, which becomes one commit of the main one.

Every file is a commit of the branch UNFINISHED, so that runs and workers of one merge, and a run that goes on, see the same state, and
who looks at the model sees nothing of it. A commit can be bound to the one before: that is how a name is taken, or replaced, in one
step. What a person pushes to the main branch meanwhile stays as it is, except in the files that are published.
"""

from __future__ import annotations

import os
import tempfile
import threading
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import disable_progress_bars

from paramdelta_dist.errors import CredentialsError, TransientStorageError
from paramdelta_dist.storage.hub_client import HubClient
from paramdelta_dist.storage.hub_places import MAIN

UNFINISHED = "paramdelta-unfinished"


class HubBranch:
    """Commits to the unfinished branch of a repository. Raises what the library does, and TransientStorageError where somebody else
    was faster."""

    def __init__(self, client: HubClient) -> None:
        self._client = client
        self._api = HfApi(endpoint=client.endpoint, library_name="paramdelta-dist")
        self._repository = client.place.repository
        self.lock = threading.Lock()
        """Held from looking to committing, so that at least one process's threads do not get into each other's way."""

    def head(self) -> str | None:
        """The branch's commit; None where there is no branch or no repository."""
        try:
            return self._client.commit_of(UNFINISHED)
        except (RepositoryNotFoundError, RevisionNotFoundError):
            return None

    def begun(self) -> str:
        """The branch's commit; it is made where there is none, and the repository, private, where there is none."""
        if (head := self.head()) is not None:
            return head
        if not self._client.is_logged_in:
            raise CredentialsError(f"{self._client.page}: nobody is logged in; `hf auth login` or HF_TOKEN with a token that may write")
        try:
            self._client.commit_of(MAIN)
        except RepositoryNotFoundError:
            self._api.create_repo(self._repository, private=True, exist_ok=True)
        self._api.create_branch(self._repository, branch=UNFINISHED, exist_ok=True)
        return self._client.commit_of(UNFINISHED)

    def add(self, path: str, content: bytes | str, parent: str | None) -> str:
        """Commit a file, of these bytes or of the file at this path. Returns the commit."""
        return self._commit([CommitOperationAdd(path, content)], f"paramdelta-dist: {path}", UNFINISHED, parent)

    def delete(self, path: str, parent: str) -> None:
        self._commit([CommitOperationDelete(path, is_folder=False)], f"paramdelta-dist: without {path}", UNFINISHED, parent)

    def publish(self) -> None:
        """Bring what the branch changed into the main one, by one commit, and delete the branch. Does nothing where there is none."""
        head = self.head()
        if head is None:
            return
        main = self._client.commit_of(MAIN)
        base, ours, theirs = (self._client.tree(commit) for commit in (self._base(head, main), head, main))
        changed = [path for path in ours if ours[path] != base.get(path) and ours[path] != theirs.get(path)]
        gone = [path for path in base if path not in ours and path in theirs]
        operations: list[Any] = [CommitOperationCopy(path, path, src_revision=head) for path in changed]
        operations += [CommitOperationDelete(path, is_folder=False) for path in gone]
        if operations:
            self._commit(operations, "Merge with paramdelta-dist", MAIN, main)
        self._api.delete_branch(self._repository, branch=UNFINISHED)

    def _base(self, head: str, main: str) -> str:
        """The commit of the main branch that the other was made from."""
        known = {commit.commit_id for commit in self._api.list_repo_commits(self._repository, revision=main)}
        return next(c.commit_id for c in self._api.list_repo_commits(self._repository, revision=head) if c.commit_id in known)

    def _commit(self, operations: list[Any], message: str, branch: str, parent: str | None) -> str:
        disable_progress_bars()
        try:
            return self._api.create_commit(self._repository, operations, commit_message=message, revision=branch, parent_commit=parent).oid
        except HfHubHTTPError as error:
            if error.response.status_code in (409, 412):
                raise TransientStorageError(f"{self._client.page}: another commit came before this one") from error
            raise


class Spool:
    """A file of this machine that holds one shard until the Hub has it, which wants to know its hash first."""

    def __init__(self) -> None:
        self._file = tempfile.NamedTemporaryFile(prefix="paramdelta-upload-")  # noqa: SIM115  # closed by __exit__
        self.path, self.size = self._file.name, 0

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._file.write(data)
        self._file.flush()
        self.size += len(data)

    @property
    def folder(self) -> str:
        return os.path.dirname(self.path)
