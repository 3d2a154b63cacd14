//! How a change runs: in one transaction, in which the audit log knows who makes it, or not at all.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{ManagementError, Result, id};
use crate::store::{
    Database,
    actor::Action,
    schema::Schema,
    statement::{Progress, Rows, Statement, Step, TransactionOutcome},
};

impl Database {
    /// Makes a change whose statements are decided one by one, in one transaction: `next` gets the rows of the previous
    /// one. The first statement locks the rows that are changed.
    pub(super) async fn decide_change<T: Send + 'static>(
        &self,
        action: Action,
        first: Statement,
        mut next: impl FnMut(Rows) -> Result<Step<T>> + Send + 'static,
    ) -> Result<T> {
        // The tables may have been migrated since they were read.
        self.forget_tables();
        let schema = self.operator_schema().await?;
        let claim = self.claim().map(|claim| claim.insert(self.statements()));
        let mut is_claim = claim.is_some();
        let mut queued: VecDeque<_> = claim.into_iter().collect();
        queued.extend(self.statements().begin_change(&schema, self.actor(), action));
        queued.push_back(first.clone());
        let mut end = self.statements().end_change(&schema);
        let first = queued.pop_front().unwrap_or(first);
        let (mut is_required, mut result) = (first.is_required, None);
        let is_incomplete = Arc::new(AtomicBool::new(false));
        let found_incomplete = Arc::clone(&is_incomplete);
        let step = move |rows: Rows| {
            if std::mem::take(&mut is_claim) && rows.is_empty() {
                return Err(ManagementError::AlreadyDone);
            }
            if is_required && rows.is_empty() {
                found_incomplete.store(true, Ordering::Relaxed);
                return Err(audit_failed(CHANGED_MEANWHILE));
            }
            if let Some(value) = result.take() {
                return Ok(Step::Commit(value));
            }
            let statement = match queued.pop_front() {
                Some(statement) => statement,
                None => match (next(rows)?, end.take()) {
                    (Step::Run(statement), kept) => {
                        end = kept;
                        statement
                    }
                    (Step::Commit(value), Some(statement)) => {
                        result = Some(value);
                        statement
                    }
                    (Step::Commit(value), None) => return Ok(Step::Commit(value)),
                    (Step::Abandon(value), _) => return Ok(Step::Abandon(value)),
                },
            };
            is_required = statement.is_required;
            Ok(Step::Run(statement))
        };
        let outcome = self.backend().transact(first, step).await;
        if is_incomplete.load(Ordering::Relaxed) {
            return Err(self.audit_problem(&schema).await);
        }
        outcome
    }

    /// Why the audit log cannot record a change.
    pub(super) async fn audit_problem(&self, schema: &Schema) -> ManagementError {
        match self.audit_state(schema).await {
            Ok(state) => audit_failed(state.problems.first().map_or(CHANGED_MEANWHILE, String::as_str)),
            Err(error) => error.into(),
        }
    }

    /// Makes a change: runs these statements in one transaction, all or nothing, in which the audit log knows who makes
    /// which change. Every change by Keystile goes this way. With `needs_rows`, each statement must return a row.
    pub(super) async fn change(
        &self,
        action: Action,
        mut statements: Vec<Statement>,
        needs_rows: bool,
        progress: Progress,
    ) -> Result<TransactionOutcome> {
        // The tables may have been migrated since they were read.
        self.forget_tables();
        let schema = self.operator_schema().await?;
        let claim =
            self.claim().map(|claim| Statement { is_required: true, ..claim.insert(self.statements()) });
        let has_claim = claim.is_some();
        let mut before: Vec<_> = claim.into_iter().collect();
        before.extend(self.statements().begin_change(&schema, self.actor(), action));
        let (offset, count) = (before.len(), statements.len());
        for statement in &mut statements {
            statement.is_required |= needs_rows;
        }
        statements.splice(0..0, before);
        statements.extend(self.statements().end_change(&schema));
        let progress = move |done: usize| progress(done.saturating_sub(offset).min(count));
        let outcome = self.backend().transaction(statements, false, Box::new(progress)).await?;
        let is_change = |at: usize| (offset..offset + count).contains(&at);
        match outcome {
            TransactionOutcome::Committed(mut rows) => {
                Ok(TransactionOutcome::Committed(rows.drain(offset..offset + count).collect()))
            }
            TransactionOutcome::Failed(at, error) if is_change(at) => {
                Ok(TransactionOutcome::Failed(at - offset, error))
            }
            TransactionOutcome::RolledBack(places) if has_claim && places.contains(&0) => {
                Err(ManagementError::AlreadyDone)
            }
            TransactionOutcome::RolledBack(places) if places.iter().any(|at| is_change(*at)) => {
                let places = places.into_iter().filter(|at| is_change(*at)).map(|at| at - offset);
                Ok(TransactionOutcome::RolledBack(places.collect()))
            }
            TransactionOutcome::Failed(_, error) => Err(audit_failed(&error.to_string())),
            TransactionOutcome::RolledBack(_) => Err(self.audit_problem(&schema).await),
        }
    }

    /// The same for one statement. If it returns no row, nothing is changed.
    pub(super) async fn change_by(&self, action: Action, statement: Statement) -> Result<Rows> {
        self.decide_change(action, statement, self.creation(action)).await
    }

    /// What follows the statement that writes a row: the end, or first a record of the row, if the change creates it for a
    /// request with an idempotency key.
    pub(super) fn creation(&self, action: Action) -> impl FnMut(Rows) -> Result<Step<Rows>> + Send + use<> {
        let mut claim = self.claim().filter(|_| action == Action::Create);
        let (statements, mut made) = (self.statements(), None);
        move |rows| {
            if let Some(made) = made.take() {
                return Ok(Step::Commit(made));
            }
            let Some(id) = id(&rows) else { return Ok(Step::Abandon(rows)) };
            let Some(claim) = claim.take() else { return Ok(Step::Commit(rows)) };
            made = Some(rows);
            Ok(Step::Run(claim.with_subject(statements, id)))
        }
    }
}

/// What is said where the reason is gone when it is looked for.
const CHANGED_MEANWHILE: &str = "its triggers changed meanwhile";

fn audit_failed(why: &str) -> ManagementError {
    ManagementError::Refused(format!(
        "nothing was changed, because the audit log keystile_audit cannot record it: {why}; run `keystile migrate` \
         as the owner of the tables"
    ))
}
