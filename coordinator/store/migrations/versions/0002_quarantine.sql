-- Agents that get no jobs until a person has seen to it. Defaults, so that the version before goes on unaware.
ALTER TABLE agent
    ADD COLUMN errored    integer NOT NULL DEFAULT 0 CHECK (errored >= 0), -- attempts in a row that the machinery failed
    ADD COLUMN quarantine text NOT NULL DEFAULT '',                        -- by the coordinator: why
    ADD COLUMN refusal    text NOT NULL DEFAULT '';                        -- by the agent's own decision: why
