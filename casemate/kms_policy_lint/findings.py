"""The weaknesses of key policies: their codes, what each gives an attacker, and the mend."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Weakness(StrEnum):
    """Stable codes; ``ADVICE`` says what each means."""

    # What cannot be judged
    MALFORMED_POLICY = "MALFORMED_POLICY"
    UNKNOWN_ELEMENT = "UNKNOWN_ELEMENT"
    UNKNOWN_OPERATOR = "UNKNOWN_OPERATOR"
    UNKNOWN_CONDITION_KEY = "UNKNOWN_CONDITION_KEY"
    # Who, and what at all
    WILDCARD_PRINCIPAL = "WILDCARD_PRINCIPAL"
    NOT_PRINCIPAL = "NOT_PRINCIPAL"
    NOT_ACTION = "NOT_ACTION"
    ROOT_FULL_ACCESS = "ROOT_FULL_ACCESS"
    ADMIN_FULL_ACCESS = "ADMIN_FULL_ACCESS"
    # Ways around attestation
    UNATTESTED_DECRYPT = "UNATTESTED_DECRYPT"
    UNATTESTED_DERIVE = "UNATTESTED_DERIVE"
    UNATTESTED_DATA_KEY = "UNATTESTED_DATA_KEY"
    CREATE_GRANT = "CREATE_GRANT"
    RE_ENCRYPT = "RE_ENCRYPT"
    REPLICATE_KEY = "REPLICATE_KEY"
    MULTI_REGION_KEY = "MULTI_REGION_KEY"
    # Registers
    PCR0_ONLY = "PCR0_ONLY"
    IMAGE_SHA384_ONLY = "IMAGE_SHA384_ONLY"
    IDENTITY_REGISTERS_ONLY = "IDENTITY_REGISTERS_ONLY"
    REGISTER_MISSING = "REGISTER_MISSING"
    PCR16_MISSING = "PCR16_MISSING"
    NITROTPM_REGISTERS = "NITROTPM_REGISTERS"
    ZERO_REGISTER = "ZERO_REGISTER"
    REGISTER_WILDCARD = "REGISTER_WILDCARD"
    REGISTER_VALUE = "REGISTER_VALUE"
    RELEASES_MIXED = "RELEASES_MIXED"
    PRESENCE_ONLY = "PRESENCE_ONLY"
    IF_EXISTS = "IF_EXISTS"
    FOR_ALL_VALUES = "FOR_ALL_VALUES"
    NEGATED_CONDITION = "NEGATED_CONDITION"
    RELEASE_NOT_ACCEPTED = "RELEASE_NOT_ACCEPTED"
    # Encryption context, and conditions that others can move
    CONTEXT_UNBOUND = "CONTEXT_UNBOUND"
    CONTEXT_INCOMPLETE = "CONTEXT_INCOMPLETE"
    CONTEXT_KEYS_OPEN = "CONTEXT_KEYS_OPEN"
    CONTEXT_NOT_EXACT = "CONTEXT_NOT_EXACT"
    CONTEXT_MISMATCH = "CONTEXT_MISMATCH"
    ALIAS_CONDITION = "ALIAS_CONDITION"
    TAG_CONDITION = "TAG_CONDITION"
    # Who may replace the policy
    MUTABLE_BY_DECRYPTER = "MUTABLE_BY_DECRYPTER"
    MUTABLE_BY_CI = "MUTABLE_BY_CI"
    MUTABLE_BY_ACCOUNT = "MUTABLE_BY_ACCOUNT"
    # Deny statements that deny less than they seem to
    DENY_ANDS_REGISTERS = "DENY_ANDS_REGISTERS"
    DENY_SKIPS_UNATTESTED = "DENY_SKIPS_UNATTESTED"
    # What the check of SPEC 12.2 refuses for a reason that has no name above
    TOO_WIDE = "TOO_WIDE"


@dataclass(frozen=True, slots=True)
class Advice:
    """What an attacker could do, and how the policy is mended."""

    attack: str
    mend: str


@dataclass(frozen=True, slots=True)
class Finding:
    """One weakness; ``statement`` counts from 1 and is None for the policy as a whole."""

    weakness: Weakness
    statement: int | None
    sid: str | None
    detail: str

    @property
    def where(self) -> str:
        """The statement in words."""
        if self.statement is None:
            return "policy"
        return f"statement {self.statement}" + (f" {self.sid!r}" if self.sid else "")

    @property
    def advice(self) -> Advice:
        """What an attacker could do, and the mend."""
        return ADVICE[self.weakness]

    def record(self) -> dict[str, object]:
        """Return the finding for JSON."""
        return {
            "code": str(self.weakness),
            "statement": self.statement,
            "sid": self.sid,
            "detail": self.detail,
            "attack": self.advice.attack,
            "mend": self.advice.mend,
        }


_FOUR: Final = "Demand PCR0, PCR1, PCR2 and PCR16 of one release, one value each."
_NARROW: Final = "List the few actions that are needed; `casemate policy kms` writes them."
_EXACT: Final = (
    "Demand casemate:v, casemate:purpose and casemate:scope by StringEquals with one value each,"
    " and ForAllValues:StringEquals on kms:EncryptionContextKeys with just these names."
)

ADVICE: Final[dict[Weakness, Advice]] = {
    Weakness.MALFORMED_POLICY: Advice(
        "Nobody can say what this policy allows.",
        "Write one JSON object with Version 2012-10-17 and a list of statements, each with Effect,"
        " Principal, Action and Resource.",
    ),
    Weakness.UNKNOWN_ELEMENT: Advice(
        "An element with an unknown or misspelt name restricts nothing.",
        "Use Sid, Effect, Principal, Action, Resource and Condition only.",
    ),
    Weakness.UNKNOWN_OPERATOR: Advice(
        "The condition may hold for requests that it was meant to exclude.",
        "State what must hold by StringEquals or StringEqualsIgnoreCase.",
    ),
    Weakness.UNKNOWN_CONDITION_KEY: Advice(
        "There is no such attestation key: no request ever has it, and operators that accept a"
        " missing key accept every request.",
        "Use kms:RecipientAttestation:PCR0 to PCR31; a bare kms:RecipientAttestation does not"
        " exist.",
    ),
    Weakness.WILDCARD_PRINCIPAL: Advice(
        "Any AWS account can call: an outsider runs your enclave image under an account of their"
        " own and has it open your data there, fed and metered by them.",
        "Name roles and users by ARN.",
    ),
    Weakness.NOT_PRINCIPAL: Advice(
        "It covers everybody who is not named: accounts and roles that do not exist yet, and the"
        " same role under its session's ARN.",
        "Name in Principal who is meant.",
    ),
    Weakness.NOT_ACTION: Advice(
        "It allows whatever is not named, operations that KMS adds later included.",
        _NARROW,
    ),
    Weakness.ROOT_FULL_ACCESS: Advice(
        "Every principal to whom the account's IAM grants kms:Decrypt reads the plaintext without"
        " any enclave, and can replace this policy.",
        "Drop the statement of the default policy; give key management to one role. " + _NARROW,
    ),
    Weakness.ADMIN_FULL_ACCESS: Advice(
        "The administrator reads the plaintext without any enclave, and so does whoever takes over"
        " the administrator's session.",
        _NARROW,
    ),
    Weakness.UNATTESTED_DECRYPT: Advice(
        "The holder of these credentials, the host included, decrypts without an enclave. A Deny"
        " elsewhere is no excuse: it has gaps of its own and one edit removes it.",
        _FOUR,
    ),
    Weakness.UNATTESTED_DERIVE: Advice(
        "The holder of these credentials derives the shared secret without an enclave.",
        _FOUR,
    ),
    Weakness.UNATTESTED_DATA_KEY: Advice(
        "The host makes data keys whose plaintext it knows and passes them to the enclave as its"
        " own.",
        "Allow data keys in the exact encryption context only, to those who own the data and never"
        " to the enclave's principal, or demand attestation.",
    ),
    Weakness.CREATE_GRANT: Advice(
        "A grant lets its grantee Decrypt without attestation: it carries no such condition, and"
        " it stays when the policy is mended.",
        "Remove kms:CreateGrant from every Allow, wildcards such as kms:Create* included; then list"
        " and revoke existing grants.",
    ),
    Weakness.RE_ENCRYPT: Advice(
        "ReEncrypt takes no Recipient: the ciphertext moves under a key of the attacker's, who then"
        " decrypts it there.",
        "Remove kms:ReEncryptFrom and kms:ReEncrypt* from every Allow.",
    ),
    Weakness.REPLICATE_KEY: Advice(
        "A replica has the same key material and a policy of its own, written by whoever makes it.",
        "Remove kms:ReplicateKey; use a single-Region key.",
    ),
    Weakness.MULTI_REGION_KEY: Advice(
        "A multi-Region key (mrk-) opens the same ciphertexts in other regions, under other"
        " policies than the one you read.",
        "Use a single-Region key.",
    ),
    Weakness.PCR0_ONLY: Advice(
        "PCR0 covers the image and not how it is set up: the host starts the same image with a"
        " configuration of its own - its publishers, its audience - and gets the keys.",
        _FOUR,
    ),
    Weakness.IMAGE_SHA384_ONLY: Advice(
        "ImageSha384 is PCR0 under another name; with it alone the host starts the same image with"
        " a configuration of its own.",
        _FOUR,
    ),
    Weakness.IDENTITY_REGISTERS_ONLY: Advice(
        "PCR3 (the instance's role), PCR4 (its id) and PCR8 (who signed the image) say nothing"
        " about the code: any enclave on that instance, or anything that signer ever signed, gets"
        " the keys.",
        _FOUR,
    ),
    Weakness.REGISTER_MISSING: Advice(
        "What the missing register measures - image, kernel or application - can be exchanged.",
        _FOUR,
    ),
    Weakness.PCR16_MISSING: Advice(
        "PCR16 is the configuration: without it the host starts the accepted image with other"
        " publishers, another audience or other TLS roots.",
        _FOUR,
    ),
    Weakness.NITROTPM_REGISTERS: Advice(
        "NitroTPM registers describe an EC2 instance whose operator can log in, not an enclave.",
        _FOUR,
    ),
    Weakness.ZERO_REGISTER: Advice(
        "An enclave in debug mode has zero registers: its operator reads its memory from the"
        " console. A zero PCR16 is an enclave without configuration.",
        "Remove zero values; take the registers from a release build.",
    ),
    Weakness.REGISTER_WILDCARD: Advice(
        "A pattern accepts images that nobody has reviewed; `*` accepts every enclave.",
        "Use StringEqualsIgnoreCase with the full value.",
    ),
    Weakness.REGISTER_VALUE: Advice(
        "The value can never match a register, which is 96 lower-case hex digits: nobody can"
        " decrypt, and the next edit is made in a hurry.",
        "Write 96 hex digits; with StringEquals in lower case.",
    ),
    Weakness.RELEASES_MIXED: Advice(
        "Lists of values combine freely: the old kernel with the new configuration is accepted,"
        " though nobody released it.",
        "Write one statement for each release.",
    ),
    Weakness.PRESENCE_ONLY: Advice(
        "Any enclave passes, one that the attacker wrote included: a document is demanded, its"
        " content is not.",
        _FOUR,
    ),
    Weakness.IF_EXISTS: Advice(
        "An IfExists operator holds when the key is missing: a request without attestation, or"
        " without encryption context, passes.",
        "Use the operator without IfExists.",
    ),
    Weakness.FOR_ALL_VALUES: Advice(
        "ForAllValues holds when the key is missing: a request without attestation, or without"
        " encryption context, passes.",
        "Use the operator without a quantifier.",
    ),
    Weakness.NEGATED_CONDITION: Advice(
        "A negated operator holds when the key is missing, and for every value but the ones named:"
        " unattested requests and unknown enclaves pass.",
        _FOUR,
    ),
    Weakness.RELEASE_NOT_ACCEPTED: Advice(
        "Keys go to an enclave that the trust policy does not accept, for example a withdrawn"
        " release with a known hole.",
        "Remove the statement, or add the release to the trust policy after review.",
    ),
    Weakness.CONTEXT_UNBOUND: Advice(
        "Without encryption context in the condition the host has the enclave open any ciphertext"
        " under this key, made for whatever purpose, in place of the right one.",
        _EXACT,
    ),
    Weakness.CONTEXT_INCOMPLETE: Advice(
        "A data key of another purpose or scope opens in place of the right one.",
        _EXACT,
    ),
    Weakness.CONTEXT_KEYS_OPEN: Advice(
        "Condition keys ignore case and further pairs are allowed: contexts that look alike and are"
        " not the same pass.",
        _EXACT,
    ),
    Weakness.CONTEXT_NOT_EXACT: Advice(
        "Several values, a pattern, a policy variable or a comparison without case accepts the"
        " ciphertexts of other scopes.",
        _EXACT,
    ),
    Weakness.CONTEXT_MISMATCH: Advice(
        "The key serves another purpose or scope than the one it was checked for.",
        "Use one key for each purpose and scope.",
    ),
    Weakness.ALIAS_CONDITION: Advice(
        "Whoever may move an alias decides what the condition matches: they point it at another"
        " key, or this key at another alias.",
        "Drop kms:RequestAlias and kms:ResourceAliases; name keys by full ARN.",
    ),
    Weakness.TAG_CONDITION: Advice(
        "Whoever may tag the key, or the session, decides what the condition matches.",
        "Drop conditions on tags from statements that release.",
    ),
    Weakness.MUTABLE_BY_DECRYPTER: Advice(
        "Who holds the enclave's credentials - the host does - removes the attestation condition"
        " and decrypts.",
        "Give kms:PutKeyPolicy to a role that does not decrypt.",
    ),
    Weakness.MUTABLE_BY_CI: Advice(
        "Who can change a pipeline or steal its token replaces the policy.",
        "Give kms:PutKeyPolicy to a role that people assume, with a second approval.",
    ),
    Weakness.MUTABLE_BY_ACCOUNT: Advice(
        "Every principal to whom the account's IAM grants kms:PutKeyPolicy replaces this policy.",
        "Give kms:PutKeyPolicy to one role.",
    ),
    Weakness.DENY_ANDS_REGISTERS: Advice(
        "Conditions of one statement are combined with AND: the Deny strikes only if every register"
        " is wrong, so one right register passes it.",
        "Write one Deny statement for each register.",
    ),
    Weakness.DENY_SKIPS_UNATTESTED: Advice(
        "The Deny does not strike requests without attestation: ForAnyValue fails on a missing key,"
        " and a further condition must hold as well.",
        "Use StringNotEqualsIgnoreCase on one register as the only condition.",
    ),
    Weakness.TOO_WIDE: Advice(
        "The client refuses this policy (KMS_POLICY_TOO_WIDE).",
        "Write the policy with `casemate policy kms`.",
    ),
}
